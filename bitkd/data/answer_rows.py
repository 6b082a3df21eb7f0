"""The rows of a question answering task: windows of tokens over contexts, and the metrics of answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from bitkd.data.answer_metric import AnswerMetric
from bitkd.data.answer_windows import check_tokenizer, encode_windows
from bitkd.data.answers import ANSWERS, ID, collect_answer_rows, read_answer_rows
from bitkd.data.files import Rows
from bitkd.data.task_rows import TaskRows
from bitkd.data.tasks import HOLDOUT, FilesSpec
from bitkd.errors import InputError


@dataclass(eq=False)
class AnswerRows(TaskRows):
    """Training rows and dev sets of a question answering task, from files or from the hub.

    A tokenized row is a window (see `bitkd.data.answer_windows.encode_windows`); `row` is its row in the file.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        check_tokenizer(self.tokenizer)

    @property
    def overlap(self) -> int:
        """Tokens of the context that neighbouring windows share."""
        found = self.task.windows.overlap
        return self.max_length // 3 if found is None else found

    @property
    def encoding_settings(self) -> list[Any]:
        return [self.overlap]

    def metrics_of(self, name: str) -> AnswerMetric:
        rows = self._raw["train" if name == HOLDOUT else name]
        golds = [[gold["text"] for gold in golds] for golds in rows["label"]]
        return self.metric(self.dev[name], rows["text_b"], golds)

    def metric(
        self, windows: Dataset, contexts: Sequence[str], golds: Sequence[Sequence[str]] | None = None
    ) -> AnswerMetric:
        """What finds answers in windows. For the parameters see `AnswerMetric`."""
        settings = self.task.answers
        return AnswerMetric(
            windows,
            contexts,
            golds,
            self.task.metric,
            settings.unanswerable,
            settings.no_answer_threshold,
            settings.longest,
        )

    def read_file(self, file: Path, labelled: bool, suffix: str | None = None, others: Sequence[list[str]] = ()) -> Rows:
        spec = self.task.files
        texts = spec.text or self.task.text
        return read_answer_rows(
            file,
            texts if labelled else spec.test_text or texts,
            _column(spec.label) if labelled else None,
            self.task.answers.unanswerable,
            skip=spec.skip_malformed and labelled,  # a submission has an answer for every row
            suffix=suffix,
            others=others,
        )

    def read_hub(self, rows: Dataset, split: str, labelled: bool) -> Rows:
        hub = self.task.hub
        texts = hub.text or self.task.text
        columns = [ID, *texts, *([_column(hub.label)] if labelled else [])]
        source = f"{hub.path} {split}"
        if missing := [column for column in columns if column not in rows.column_names]:
            raise InputError(f"{source}: column {missing[0]} is missing; it has {rows.column_names}")
        values = zip(*(rows[column][:] for column in columns))
        records = ((f"{source}, row {number}", list(fields)) for number, fields in enumerate(values))
        skip = self.task.files.skip_malformed and labelled
        return collect_answer_rows(records, texts, labelled, self.task.answers.unanswerable, source, skip)

    def encode(self, rows: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        windows = encode_windows(
            self.tokenizer, rows["text_a"], rows["text_b"], rows.get("label"), self.max_length, self.overlap
        )
        return {**windows, "row": [numbers[row] for row in windows["row"]]}

    def groups(self, rows: Rows) -> list[Any]:
        """Whether a row has an answer: of both, a tenth is held out."""
        return [bool(golds) for golds in rows["label"]]


def _column(label: str) -> str:
    """The column of the answers, which a task need not name."""
    return ANSWERS if label == FilesSpec().label else label
