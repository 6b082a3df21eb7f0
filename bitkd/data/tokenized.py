"""Tokenized rows: how texts become tokens, and how rows of tokens become a batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor

from bitkd.data.batches import MULTIPLE

SECOND = "_b"
"""End of the names of the second text's columns, where both texts of a row are tokenized by themselves."""


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
        longest = int(lengths.max())
        width = -(-longest // MULTIPLE) * MULTIPLE if self.length is None else max(self.length, longest)
        places = np.arange(width)
        real = places >= width - lengths[:, None] if self.left else places < lengths[:, None]
        batch: dict[str, Tensor] = {}
        for name in self.names:
            if name in columns:
                padded = np.full(real.shape, self.fill.get(name, 0), dtype=np.int64)
                padded[real] = columns[name]
                batch[name] = torch.from_numpy(padded)
            elif name == "attention_mask":
                batch[name] = torch.from_numpy(real.astype(np.int64))
        return batch


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
    rows have them, and index (the row's number), each (rows,). Tokens are read from Arrow's memory or file, in which they
    stay: nothing is copied but the batch.
    """

    texts: ClassVar[tuple[str, ...]] = ("",)
    """What the names of the columns end in, for each text of a row that the model reads by itself."""

    def __init__(self, rows: Dataset, padding: Padding) -> None:
        names = [f"{name}{end}" for end in self.texts for name in padding.names]
        wanted = [name for name in (*names, "label", "index") if name in rows.column_names]
        self.rows = rows.select_columns(wanted).with_format("arrow")
        self.padding = padding

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        table = self.rows[numbers].combine_chunks()
        columns = {name: column.chunk(0) for name, column in zip(table.column_names, table.columns)}
        lengths = np.concatenate([np.diff(columns[f"input_ids{end}"].offsets.to_numpy()) for end in self.texts])
        inputs = {
            name: np.concatenate([columns[f"{name}{end}"].flatten().to_numpy() for end in self.texts])
            for name in self.padding.names
            if name in columns
        }
        batch = self.padding.pad(lengths, inputs)
        if "label" in columns:
            labels = _tensor(columns["label"])
            batch["labels"] = labels.float() if labels.is_floating_point() else labels.long()
        batch["index"] = _tensor(columns["index"]).long()
        return batch


class PairBatches(Batches):
    """Rows of two texts that were tokenized by themselves (`encode_apart`), of which an item is a whole batch.

    The inputs of the model are (2 · pairs, length): first all first texts, then all second texts, in the same order. labels
    and index are (pairs,).
    """

    texts = ("", SECOND)


def _tensor(numbers: pa.Array) -> Tensor:
    return torch.from_numpy(numbers.to_numpy(zero_copy_only=False, writable=True))
