"""The rows of a task that gives each word a tag, as windows of tokens."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from bitkd.data.entity_metric import EntityScores
from bitkd.data.files import Rows
from bitkd.data.tags import TagScheme
from bitkd.data.task_rows import Submission, TaskRows, hub_label
from bitkd.data.tasks import HOLDOUT
from bitkd.data.token_files import collect_sentences
from bitkd.data.word_windows import check_words_tokenizer, encode_words


@dataclass(eq=False)
class TokenRows(TaskRows):
    """Sentences of words with tags (`task.kind=token_classification`).

    A sentence with more tokens than `max_length` becomes several windows that overlap; each is a row here, with the columns
    of `TaskRows` and `row` (the number of the sentence), `label` and `word`: see `bitkd.data.word_windows.encode_words`.
    Nothing is truncated.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.scheme = TagScheme(self.task.labels or [])
        self.overlap = check_words_tokenizer(self.tokenizer, self.max_length, self.task.windows.overlap)

    @property
    def encoding_settings(self) -> list[Any]:
        return [self.overlap]

    def metrics(self) -> dict[str, MetricCollection | Metric]:
        return {name: self._metrics_of(name) for name in self.dev_names}

    def metrics_on(self, rows: Rows) -> Metric:
        return EntityScores(self.scheme, rows["label"])

    def _metrics_of(self, name: str) -> Metric:
        rows = self.raw_rows(name)
        held_out = self._divide(self.groups(rows))[0] if name == HOLDOUT else None
        return EntityScores(self.scheme, rows["label"], held_out)

    def read_hub(self, rows: Dataset, split: str, labelled: bool) -> Rows:
        hub, task = self.task.hub, self.task
        columns = [*(hub.text or task.text), *([hub.label] if labelled else [])]
        source, records = self.hub_records(rows, split, columns)
        names = getattr(getattr(rows.features[hub.label], "feature", None), "names", None) if labelled else None
        read_tag = (lambda value, place: hub_label(task, value, names, place)) if labelled else None
        return collect_sentences(records, read_tag, source, skip=task.files.skip_malformed and labelled)

    def encode(self, rows: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        windows = encode_words(self.tokenizer, rows["words"], rows.get("label"), self.max_length, self.overlap)
        windows["row"] = [numbers[row] for row in windows["row"]]
        return {**windows, "truncated": [False] * len(windows["row"])}

    def submission(self, name: str, answers: Iterable[tuple[Tensor, Tensor]]) -> Submission:
        """A line for each word: the word, a tab and its tag; a blank line after each sentence."""
        sentences = self._read(name)["words"]
        windows = self.test_rows(name)
        tags = [[self.scheme.outside] * len(words) for words in sentences]
        left = self.tokenizer.padding_side == "left"
        for index, logits in answers:
            for number, best in zip(index.tolist(), logits.argmax(-1).tolist()):
                window = windows[number]
                first = len(best) - len(window["word"]) if left else 0
                for word, tag in zip(window["word"], best[first:]):
                    if word >= 0:
                        tags[window["row"]][word] = tag
        names = self.task.labels or []
        lines = []
        for words, found in zip(sentences, tags):
            # A word of a list may hold a tab or the end of a line.
            lines += [f"{' '.join(word.split())}\t{names[tag]}" for word, tag in zip(words, found)] + [""]
        return Submission("\n".join(lines) + "\n", len(sentences))

    def groups(self, rows: Rows) -> list[Any]:
        """1 for a sentence that has entities, else 0."""
        return [int(any(tag != self.scheme.outside for tag in tags)) for tags in rows["label"]]
