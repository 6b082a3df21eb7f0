"""The rows of a question answering task: windows of tokens over contexts, and the metrics of answers."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from bitkd.data.answer_files import ID, collect_answer_rows, column_of_answers
from bitkd.data.answer_metric import AnswerMetric
from bitkd.data.answer_windows import check_tokenizer, encode_windows, overlap_of, question_limit
from bitkd.data.files import Rows
from bitkd.data.task_rows import HOLDOUT_SHARE, Submission, TaskRows
from bitkd.errors import InputError, shorten


@dataclass(eq=False)
class AnswerRows(TaskRows):
    """Training rows and dev sets of a question answering task, from files or from the hub.

    A tokenized row is a window (see `bitkd.data.answer_windows.encode_windows`); `row` is its row in the file.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        check_tokenizer(self.tokenizer)
        question_limit(self.tokenizer, self.max_length, self.overlap)  # refuses a window that is too short

    @property
    def overlap(self) -> int:
        """Tokens of the context that neighbouring windows share."""
        return overlap_of(self.task, self.max_length)

    @property
    def encoding_settings(self) -> list[Any]:
        return [self.overlap]

    @property
    def truncation(self) -> str:
        limit = question_limit(self.tokenizer, self.max_length, self.overlap)
        return (
            f"questions longer than {limit} tokens are cut, and answers that are in no window of data.max_length="
            f"{self.max_length} tokens as a whole count as none in training"
        )

    def metrics(self) -> dict[str, MetricCollection | Metric]:
        return {name: self._metric(self.dev[name], self.raw_rows(name)) for name in self.dev_names}

    def metrics_on(self, rows: Rows) -> AnswerMetric:
        return self._metric(self._tokenize(rows, "rows"), rows)

    def _metric(self, windows: Dataset, rows: Rows) -> AnswerMetric:
        golds = [[gold["text"] for gold in golds] for golds in rows["label"]]
        return AnswerMetric(windows, rows["text_b"], self.task.answers, golds, self.task.metric)

    def submission(self, name: str, answers: Iterable[tuple[Tensor, Tensor]]) -> Submission:
        """The answers to a test set in SQuAD's form: one JSON object, id -> answer.  For the parameters see `TaskRows`."""
        rows, windows = self._read(name), self.test_rows(name)
        metric = AnswerMetric(windows, rows["text_b"], self.task.answers)
        context = torch.tensor([windows["context_from"][:], windows["context_to"][:]]).T
        for index, logits in answers:
            metric.update(logits, {"index": index, "context": context[index]})
        found = {rows["id"][row]: answer.text for row, answer in metric.answers().items()}
        return Submission(json.dumps(found, ensure_ascii=False) + "\n", len(found))

    def read_hub(self, rows: Dataset, split: str, labelled: bool) -> Rows:
        hub = self.task.hub
        texts = hub.text or self.task.text
        columns = [ID, *texts, *([column_of_answers(hub.label)] if labelled else [])]
        source, records = self.hub_records(rows, split, columns)
        skip = self.task.files.skip_malformed and labelled
        return collect_answer_rows(self.task, records, texts, labelled, source, skip)

    def encode(self, rows: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        windows = encode_windows(
            self.tokenizer, rows["text_a"], rows["text_b"], rows.get("label"), self.max_length, self.overlap
        )
        if missing := sorted(set(range(len(numbers))) - set(windows["row"])):
            raise InputError(
                f"task {self.task.name}: the tokenizer makes no tokens of the context of the row with id "
                f"{shorten(rows[ID][missing[0]])}, {shorten(rows['text_b'][missing[0]])}; leave out this row"
            )
        return {**windows, "row": [numbers[row] for row in windows["row"]]}

    def groups(self, rows: Rows) -> list[Any]:
        """The number of each row's context: a tenth of the contexts is held out, with all their questions."""
        numbers: dict[str, int] = {}
        return [numbers.setdefault(context, len(numbers)) for context in rows["text_b"]]

    def _divide(self, labels: list[Any]) -> tuple[list[int], list[int]]:
        """For parameters and result see `TaskRows`.  labels: number of each row's context, from 0 without gaps."""
        contexts = max(labels) + 1
        if not round(contexts * HOLDOUT_SHARE):
            raise InputError(f"data.selection=holdout: {contexts} contexts of training rows are too few for a tenth")
        held_out = set(super()._divide([0] * contexts)[0])
        sides: tuple[list[int], list[int]] = [], []
        for row, context in enumerate(labels):
            sides[context not in held_out].append(row)
        return sides
