"""Answers of a model: the best part of each context, and how well it matches the right answers (SQuAD)."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from bitkd.data.task_kinds import OF_ANSWERS
from bitkd.data.tasks import AnswersSpec

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


class Answer(NamedTuple):
    """What a model answers to a row."""

    text: str
    """Empty if it answers nothing."""

    start: int | None
    """The first character in the context; None without an answer."""

    score: float
    """Logit of the start and logit of the end; for no answer, those of [CLS]."""

    margin: float
    """How much better the best answer is than no answer."""


def best_spans(logits: Tensor, context: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """The part of each window's context with the highest sum of start and end logit, exactly, and that sum.

    logits: (windows, length, 2).  context: (windows, 2), first token of the context and the one after its last.
    longest: tokens of a part at most.

    Returns its first and last token, (windows, 2), and its score, (windows,). Nothing waits for the device.
    """
    place = torch.arange(logits.shape[1], device=logits.device)
    inside = (place >= context[:, :1]) & (place < context[:, 1:])
    start, end = logits.float().masked_fill(~inside[..., None], -torch.inf).unbind(-1)
    longest = min(longest, logits.shape[1])
    ends = torch.nn.functional.pad(end, (0, longest - 1), value=-torch.inf).unfold(1, longest, 1)
    best_end, distance = ends.max(-1)  # (windows, length): for each start
    score, first = (start + best_end).max(-1)
    spans = torch.stack([first, first + distance.gather(1, first[:, None]).squeeze(1)], 1)
    return spans.clamp(context[:, :1], context[:, 1:] - 1), score  # where no score is finite, a part all the same


class AnswerMetric(Metric):
    """Exact match and F1 of answers, from 0 to 1, as SQuAD's own evaluation counts them.

    Of each window it keeps the best part of the context and the score of no answer. `compute` takes the best window of each
    row, and the lowest score of no answer of all its windows, as BERT's code does. It is exact for any division of windows
    among processes.

    windows: of the set, with the columns `index` (ascending), `row`, `context_from` and `offsets` (see
        `bitkd.data.answer_windows`).
    contexts: of each row.
    spec: the task's `answers`. With `unanswerable` the rules are those of SQuAD 2.0: right answers without a word are left
        out; and an answer without a word has an F1 of 1 where the right answer is none (0 in SQuAD 1.1).
    golds: texts of the right answers of each row, none if it is unanswerable; None: unknown.
    metric: the name of the metric whose values `row_scores` gives.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    index: list[Tensor]
    spans: list[Tensor]
    scores: list[Tensor]

    def __init__(
        self,
        windows: Dataset,
        contexts: Sequence[str],
        spec: AnswersSpec,
        golds: Sequence[Sequence[str]] | None = None,
        metric: str = "answer_f1",
    ) -> None:
        super().__init__()
        self.windows, self.contexts, self.spec = windows, contexts, spec
        self.golds, self.metric = golds, metric
        for name in ("index", "spans", "scores"):
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self._rows = torch.empty(0, 1), torch.empty(0)

    def update(self, logits: Tensor, batch: dict[str, Tensor]) -> None:
        """logits: (windows, length, 2), of starts and ends.  batch: its `context`, (windows, 2), and `index`, (windows,)."""
        spans, scores = best_spans(logits, batch["context"], self.spec.longest)
        self.index.append(batch["index"])
        self.spans.append(spans)
        self.scores.append(torch.stack([scores, logits[:, 0].float().sum(-1)], 1))

    def answers(self) -> dict[int, Answer]:
        """The answer of each row that was seen, by its number, in the order of rows."""
        # Windows come in another order with other processes and batches.
        index, order = (part.numpy() for part in dim_zero_cat(self.index).cpu().sort())
        spans, scores = dim_zero_cat(self.spans).cpu().numpy()[order], dim_zero_cat(self.scores).cpu().numpy()[order]
        windows = self.windows.select_columns(["index", "row", "context_from", "offsets"])
        lines = np.searchsorted(windows.with_format("numpy")["index"][:], index)
        table = windows.with_format("arrow")[lines].combine_chunks()
        row, context_from = table["row"].to_numpy(), table["context_from"].to_numpy()
        offsets = table["offsets"].chunk(0)
        token = offsets.offsets.to_numpy()[:-1, None] - offsets.offsets[0].as_py() + 2 * (spans - context_from[:, None])
        start, end = offsets.flatten().to_numpy()[np.add(token, [0, 1])].T
        nothing = np.full(row.max() + 1, np.inf)
        np.minimum.at(nothing, row, scores[:, 1])
        ranking = np.lexsort((-scores[:, 0], row))  # stable: of equal windows the first
        rows, first = np.unique(row[ranking], return_index=True)
        result = {}
        for number, i in zip(rows.tolist(), ranking[first]):
            score, empty = float(scores[i, 0]), float(nothing[number])
            if self.spec.unanswerable and empty - score > self.spec.no_answer_threshold:
                result[number] = Answer("", None, empty, score - empty)
            else:
                result[number] = Answer(self.contexts[number][start[i] : end[i]], int(start[i]), score, score - empty)
        return result

    def compute(self) -> dict[str, Tensor]:
        """Name of each metric -> its mean over rows."""
        if self.golds is None:
            raise ValueError("the right answers are unknown")
        found = self.answers()
        rows = [answer_scores(answer.text, self.golds[row], self.spec.unanswerable) for row, answer in found.items()]
        values = {name: torch.tensor([row[name] for row in rows]) for name in OF_ANSWERS}
        self._rows = values[self.metric].unsqueeze(1), torch.tensor([len(self.golds[row]) > 0 for row in found]).long()
        return {name: column.double().mean().float() for name, column in values.items()}

    def row_scores(self) -> tuple[Tensor, Tensor]:
        """After `compute`: the value of `metric` for each row, (rows, 1), and whether it has an answer, (rows,)."""
        return self._rows


def answer_scores(text: str, golds: Sequence[str], unanswerable: bool) -> dict[str, float]:
    """The metrics of one answer, 0 to 1, the best over the right answers.  unanswerable: by the rules of SQuAD 2.0.

    torchmetrics has them too, but takes 0.7 ms or more for each answer, and knows the rules of SQuAD 2.0 in part.
    """
    words, wanted = words_of(text), [words_of(gold) for gold in golds]
    if unanswerable:
        wanted = [gold for gold in wanted if gold] or [[]]
    return {
        "exact_match": max(float(words == gold) for gold in wanted),
        "answer_f1": max(_f1(words, gold, unanswerable) for gold in wanted),
    }


def words_of(text: str) -> list[str]:
    """What SQuAD's metrics compare: words in lower case, without ASCII punctuation and without articles."""
    return ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split()


def _f1(words: list[str], gold: list[str], unanswerable: bool) -> float:
    if not words or not gold:
        return float(unanswerable and words == gold)
    return 2 * (Counter(words) & Counter(gold)).total() / (len(words) + len(gold))
