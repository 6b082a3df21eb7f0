"""Answers to questions, cut out of a context."""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset

from bitkd.commands.predictor import Predictor
from bitkd.data.answer_metric import Answer, AnswerMetric
from bitkd.data.answer_windows import check_tokenizer, encode_windows, overlap_of, question_limit
from bitkd.errors import InputError


class AnswerPredictor(Predictor):
    """Answers questions from contexts of any length, which are read in windows."""

    texts = (2,)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        check_tokenizer(self._tokenizer)
        self._overlap = overlap_of(self.task, self.max_length)
        self._longest_question = question_limit(self._tokenizer, self.max_length, self._overlap)

    @property
    def truncation(self) -> str:
        return f"questions longer than {self._longest_question} tokens were cut"

    def predict_batch(self, rows: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
        """For each row: {"answer": …, "start": …, "end": …, "score": …}. The answer is empty, and its places are None, if the
        model finds none; its score is None too if the tokenizer makes no tokens of the context.

        rows: question and context.  start, end: characters of the context, the first of the answer and the one after its
        last.  score: sum of the logits of its first and last token; of no answer, those of [CLS].
        """
        if any(len(row) != 2 for row in rows):
            raise InputError("an answer is found in rows of two texts, a question and a context; a row has one")
        questions, contexts = (list(column) for column in zip(*rows))
        windows = encode_windows(self._tokenizer, questions, contexts, None, self.max_length, self._overlap)
        self.truncated += sum(windows["truncated"])
        windows["index"] = list(range(len(windows["row"])))
        metric = AnswerMetric(Dataset.from_dict(windows), contexts, self.task.answers)
        for start in range(0, len(windows["row"]), self.batch_size):
            part = {name: column[start : start + self.batch_size] for name, column in windows.items()}
            context = torch.tensor([part["context_from"], part["context_to"]]).T
            metric.update(self.logits(part), {"index": torch.tensor(part["index"]), "context": context})
        found = metric.answers() if windows["row"] else {}
        return [_as_prediction(found.get(row)) for row in range(len(rows))]

    @property
    def columns(self) -> list[str]:
        return ["answer", "start", "end", "score"]

    def fields(self, prediction: dict[str, Any]) -> list[str]:
        places = ["" if prediction[name] is None else str(prediction[name]) for name in ("start", "end")]
        score = "" if prediction["score"] is None else f"{prediction['score']:.6f}"
        return [prediction["answer"], *places, score]

    def line(self, prediction: dict[str, Any]) -> str:
        place = "no answer" if prediction["start"] is None else f"{prediction['start']}-{prediction['end']}"
        score = "" if prediction["score"] is None else f" score={prediction['score']:.4f}"
        return f"{prediction['answer']}\t{place}{score}"


def _as_prediction(answer: Answer | None) -> dict[str, Any]:
    if answer is None:
        return {"answer": "", "start": None, "end": None, "score": None}
    end = None if answer.start is None else answer.start + len(answer.text)
    return {"answer": answer.text, "start": answer.start, "end": end, "score": answer.score}
