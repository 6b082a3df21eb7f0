"""The rows of sentence similarity: pairs of texts that an encoder reads one by one."""

from typing import Any

from bitkd.data.task_rows import TaskRows
from bitkd.data.tokenized import encode_apart


class SimilarityRows(TaskRows):
    """Rows of two texts, each tokenized by itself: the columns of the second text end in `_b` (see `encode_apart`).

    label is the cosine that the pair should have, from 0 to 1.
    """

    def encode(self, rows: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        encoded = encode_apart(self.tokenizer, [rows["text_a"], rows["text_b"]], self.max_length)
        return {**encoded, **({"label": rows["label"]} if "label" in rows else {}), "index": numbers}

    def groups(self, rows: dict[str, list[Any]]) -> list[float]:
        """Five groups by the label."""
        return [5 * label for label in rows["label"]]
