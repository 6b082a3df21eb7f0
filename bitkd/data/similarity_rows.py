"""The rows of sentence similarity: pairs of texts that an encoder reads one by one."""

import logging
from collections.abc import Iterable
from typing import Any

from datasets import Dataset
from torch import Tensor

from bitkd.data.task_rows import Submission, TaskRows
from bitkd.data.tokenized import encode_apart
from bitkd.distill.similarity import pair_cosines

log = logging.getLogger(__name__)


class SimilarityRows(TaskRows):
    """Rows of two texts, each tokenized by itself: the columns of the second text end in `_b` (see `encode_apart`).

    label is the cosine that the pair should have, from 0 to 1.
    """

    @property
    def encoding_settings(self) -> list[Any]:
        return ["apart"]

    def encode(self, rows: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        encoded = encode_apart(self.tokenizer, [rows["text_a"], rows["text_b"]], self.max_length)
        return {**encoded, **({"label": rows["label"]} if "label" in rows else {}), "index": numbers}

    def note(self, rows: Dataset) -> None:
        super().note(rows)
        if (highest := max(rows["label"][:])) < 0.5:
            low, high = self.task.similarity.lowest, self.task.similarity.highest
            log.warning(
                "%s: no label of its training rows is above %g, in a range from %g to %g; is this the range of the labels "
                "(task.similarity.lowest and .highest)?",
                self.task.name,
                low + (high - low) * highest,
                low,
                high,
            )

    def groups(self, rows: dict[str, list[Any]]) -> list[float]:
        """The label from 0 to 5."""
        return [5 * label for label in rows["label"]]

    def submission(self, name: str, answers: Iterable[tuple[Tensor, Tensor]]) -> Submission:
        """The cosines, in the range of the task's labels."""
        low, high = self.task.similarity.lowest, self.task.similarity.highest
        found = [(index, low + (high - low) * pair_cosines(texts).clamp(0, 1).unsqueeze(1)) for index, texts in answers]
        return super().submission(name, found)
