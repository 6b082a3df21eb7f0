"""Tokenized rows: how texts become tokens, and how rows of tokens become a batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor

from bitkd.data.batches import MULTIPLE


def encode_texts(tokenizer: Any, texts: list[list[str]], max_length: int) -> dict[str, list[Any]]:
    """Tokens of one or two columns of texts, a list for each row, at most `max_length` of them.

    Besides the tokenizer's own columns: `length` (tokens of a row) and `truncated` (whether it was longer).
    """
    encoded: dict[str, list[Any]] = dict(tokenizer(*texts, truncation=False, verbose=False))
    truncated = [len(ids) > max_length for ids in encoded["input_ids"]]
    for row in [row for row, long in enumerate(truncated) if long]:
        shorter = tokenizer(*(column[row] for column in texts), truncation=True, max_length=max_length)
        for name in encoded:
            encoded[name][row] = shorter[name]
    return {**encoded, "length": [len(ids) for ids in encoded["input_ids"]], "truncated": truncated}


def lengths_of(rows: Dataset) -> np.ndarray:
    """Tokens of each row."""
    return np.asarray(rows.with_format("numpy")["length"][:])


@dataclass(frozen=True)
class Padding:
    """How rows of tokens become tensors of one length, as the tokenizer's `pad` would make them."""

    names: tuple[str, ...]
    """The inputs of the model."""

    fill: dict[str, int]
    """What an input is padded with; 0 if it is not here."""

    left: bool = False
    """Whether rows are padded on their left side."""

    length: int | None = None
    """Tokens that every batch is padded to; None: its longest row's, rounded up to a multiple of 8."""

    @classmethod
    def of(cls, tokenizer: Any, length: int | None = None) -> "Padding":
        """The padding of a tokenizer."""
        fill = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
        return cls(tuple(tokenizer.model_input_names), fill, tokenizer.padding_side == "left", length)

    def pad(self, columns: dict[str, list[Any]]) -> dict[str, Tensor]:
        """A batch of integers, (rows, length) each.

        columns: input_ids and any other inputs of the model, an array or a list of numbers for each row. A mask of the
        real tokens is added, if the model reads one and there is none.
        """
        lengths = np.array([len(ids) for ids in columns["input_ids"]])
        longest = int(lengths.max())
        width = -(-longest // MULTIPLE) * MULTIPLE if self.length is None else max(self.length, longest)
        places = np.arange(width)
        real = places >= width - lengths[:, None] if self.left else places < lengths[:, None]
        batch: dict[str, Tensor] = {}
        for name in self.names:
            if name in columns:
                padded = np.full(real.shape, self.fill.get(name, 0), dtype=np.int64)
                padded[real] = np.concatenate(columns[name])
                batch[name] = torch.from_numpy(padded)
            elif name == "attention_mask":
                batch[name] = torch.from_numpy(real.astype(np.int64))
        return batch


def collate(padding: Padding, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """A batch of a stream's rows, with the content of a batch of `Batches`.

    Rows add `position`, (4,): the last one's reader, pass, block and sequence.
    """
    batch = padding.pad({name: [row[name] for row in rows] for name in padding.names if name in rows[0]})
    batch["index"] = torch.tensor([row["index"] for row in rows])
    batch["position"] = torch.tensor(rows[-1]["position"])
    return batch


class Batches(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Tokenized rows, of which an item is a whole batch: `batches[[3, 1, 2]]` holds the rows 3, 1 and 2.

    A batch has input_ids, attention_mask and (if the model has them) token_type_ids, each (rows, length); labels, if the
    rows have them, and index (the row's number), each (rows,). Tokens are read from Arrow's memory or file, in which they
    stay: nothing is copied but the batch.
    """

    def __init__(self, rows: Dataset, padding: Padding) -> None:
        self.rows = rows
        self.padding = padding

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        rows = np.asarray(numbers)
        if self._order is not None:
            rows = self._order[rows]
        columns = self._columns
        batch = self.padding.pad({name: columns[name].lists(rows) for name in self.padding.names if name in columns})
        if "label" in columns:
            labels = torch.from_numpy(columns["label"].numbers(rows))
            batch["labels"] = labels.float() if labels.is_floating_point() else labels.long()
        batch["index"] = torch.from_numpy(columns["index"].numbers(rows)).long()
        return batch

    def __getstate__(self) -> dict[str, Any]:
        """Without the views of Arrow's memory: pickled, each would be a copy of all rows."""
        return {"rows": self.rows, "padding": self.padding}

    @cached_property
    def _columns(self) -> dict[str, "_Column"]:
        table, wanted = self.rows.data, (*self.padding.names, "label", "index")
        return {name: _Column(table.column(name)) for name in wanted if name in table.column_names}

    @cached_property
    def _order(self) -> np.ndarray | None:
        """Number in the table of each row, if the rows were selected from others."""
        selected = self.rows._indices
        return None if selected is None else selected.column(0).to_numpy().astype(np.int64)


class _Column:
    """A column of numbers, or of lists of numbers, without a copy: numpy's views of its parts."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        parts = [part for part in column.chunks if len(part)]
        self._ends = np.cumsum([len(part) for part in parts])
        self._firsts = self._ends - [len(part) for part in parts]
        nested = pa.types.is_nested(column.type)
        self._offsets = [part.offsets.to_numpy() for part in parts] if nested else []
        self._values = [(part.values if nested else part).to_numpy(zero_copy_only=False) for part in parts]

    def lists(self, rows: np.ndarray) -> list[np.ndarray]:
        """The numbers of each of these rows."""
        found = []
        for part, row in self._places(rows):
            offsets = self._offsets[part]
            found.append(self._values[part][offsets[row] : offsets[row + 1]])
        return found

    def numbers(self, rows: np.ndarray) -> np.ndarray:
        """The number of each of these rows."""
        return np.array([self._values[part][row] for part, row in self._places(rows)])

    def _places(self, rows: np.ndarray) -> "zip[tuple[int, int]]":
        """The part that has each row, and the row's number in it."""
        parts = np.searchsorted(self._ends, rows, side="right")
        return zip(parts.tolist(), (rows - self._firsts[parts]).tolist())
