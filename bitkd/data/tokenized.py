"""Tokenized rows: how texts become tokens, and how rows of tokens become a batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor

from bitkd.data.batches import MULTIPLE

SECOND = "_b"
"""End of the names of the second text's columns, where both texts of a row are tokenized by themselves."""


UNLABELLED = -100
"""Label of a token that has none, as in torch's cross entropy."""

_ABOUT_ROWS = ("label", "index", "row", "word", "context_from", "context_to")
"""Columns that are not inputs of the model."""


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


def encode_apart(tokenizer: Any, texts: list[list[str]], max_length: int) -> dict[str, list[Any]]:
    """Tokens of two columns of texts, each text by itself, at most `max_length` tokens of each.

    The tokenizer's columns of the second text end in `_b`. `length` is that of the longer text; `truncated` says whether one
    of them was longer than `max_length`.
    """
    first, second = (encode_texts(tokenizer, [column], max_length) for column in texts)
    length, truncated = (list(zip(first.pop(name), second.pop(name))) for name in ("length", "truncated"))
    columns = first | {f"{name}{SECOND}": rows for name, rows in second.items()}
    return columns | {"length": [max(pair) for pair in length], "truncated": [any(pair) for pair in truncated]}


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

    def pad(self, lengths: np.ndarray, columns: dict[str, np.ndarray]) -> dict[str, Tensor]:
        """A batch of integers, (rows, length) each.

        lengths: tokens of each row.
        columns: input_ids and any other inputs of the model: the numbers of all rows, one row after another. A mask of the
        real tokens is added, if the model reads one and there is none.
        """
        batch: dict[str, Tensor] = {}
        for name in self.names:
            if name in columns:
                batch[name] = self.place(lengths, columns[name], self.fill.get(name, 0))
            elif name == "attention_mask":
                batch[name] = torch.from_numpy(self._real(lengths).astype(np.int64))
        return batch

    def place(self, lengths: np.ndarray, numbers: np.ndarray, fill: int) -> Tensor:
        """One number for each token of a batch, (rows, length).

        lengths: tokens of each row.  numbers: of all rows, one row after another.  fill: of padding.
        """
        real = self._real(lengths)
        padded = np.full(real.shape, fill, dtype=np.int64)
        padded[real] = numbers
        return torch.from_numpy(padded)

    def _real(self, lengths: np.ndarray) -> np.ndarray:
        """Where the tokens of a batch are, (rows, length)."""
        longest = int(lengths.max())
        width = -(-longest // MULTIPLE) * MULTIPLE if self.length is None else max(self.length, longest)
        places = np.arange(width)
        return places >= width - lengths[:, None] if self.left else places < lengths[:, None]


def collate(padding: Padding, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """A batch of a stream's rows, with the content of a batch of `Batches`.

    Rows add `position`, (4,): the last one's reader, pass, block and sequence.
    """
    lengths = np.array([len(row["input_ids"]) for row in rows])
    inputs = [name for name in padding.names if name in rows[0]]
    batch = padding.pad(lengths, {name: np.concatenate([row[name] for row in rows]) for name in inputs})
    batch["index"] = torch.tensor([row["index"] for row in rows])
    batch["position"] = torch.tensor(rows[-1]["position"])
    return batch


class Batches(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Tokenized rows, of which an item is a whole batch: `batches[[3, 1, 2]]` holds the rows 3, 1 and 2.

    A batch has input_ids, attention_mask and (if the model has them) token_type_ids, each (rows, length); labels, if the
    rows have them, and index (the row's number), each (rows,). Rows that are windows add `row`, the row of the file.
    Labels and words of tokens are (rows, length), padded with -100 and -1; of an answer, labels and context are its first
    token and its last, and the context's first token and the one after it, (rows, 2).
    Where the two texts of a row were tokenized by themselves (`encode_apart`), the inputs of the model are (2 · rows, length):
    first all first texts, then all second texts, in the same order.
    Tokens are read from Arrow's memory or file, in which they stay: nothing is copied but the batch.
    """

    def __init__(self, rows: Dataset, padding: Padding) -> None:
        self._texts = [end for end in ("", SECOND) if f"input_ids{end}" in rows.column_names]
        inputs = [f"{name}{end}" for end in self._texts for name in padding.names]
        wanted = [name for name in (*inputs, *_ABOUT_ROWS) if name in rows.column_names]
        self.rows = rows.select_columns(wanted).with_format("arrow")
        self.padding = padding

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        table = self.rows[numbers].combine_chunks()
        columns = {name: column.chunk(0) for name, column in zip(table.column_names, table.columns)}
        lengths = _joined([np.diff(columns[f"input_ids{end}"].offsets.to_numpy()) for end in self._texts])
        names = [name for name in self.padding.names if name in columns]
        inputs = {name: [columns[f"{name}{end}"].flatten().to_numpy() for end in self._texts] for name in names}
        batch = self.padding.pad(lengths, {name: _joined(parts) for name, parts in inputs.items()})
        if "label" in columns:
            labels = self._of_rows(columns["label"], lengths, UNLABELLED)
            batch["labels"] = labels.float() if labels.is_floating_point() else labels.long()
        if "word" in columns:
            batch["word"] = self._of_rows(columns["word"], lengths, -1)
        if "context_from" in columns:
            batch["context"] = torch.stack(
                [_tensor(columns["context_from"]), _tensor(columns["context_to"])], dim=1
            ).long()
        for name in ("row", "index"):
            if name in columns:
                batch[name] = _tensor(columns[name]).long()
        return batch

    def _of_rows(self, column: pa.Array, lengths: np.ndarray, fill: int) -> Tensor:
        """One number for each row, (rows,); for each token, (rows, length); or equally many for each row.

        lengths: tokens of each row.  fill: of padded tokens.
        """
        if not pa.types.is_list(column.type):
            return _tensor(column)
        numbers = column.flatten().to_numpy()
        if np.array_equal(np.diff(column.offsets.to_numpy()), lengths):
            return self.padding.place(lengths, numbers, fill)
        return torch.from_numpy(numbers.reshape(len(lengths), -1).astype(np.int64))


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if len(parts) > 1 else parts[0]


def _tensor(numbers: pa.Array) -> Tensor:
    return torch.from_numpy(numbers.to_numpy(zero_copy_only=False, writable=True))
