"""Tokenized rows: how texts become tokens, and how rows of tokens become a batch."""

from typing import Any

import numpy as np
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


def collate(tokenizer: Any, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """A batch of tokenized rows, padded to the longest of them, to a multiple of 8 tokens.

    Returns input_ids, attention_mask and (if the model has them) token_type_ids, each (batch, length); labels, if the
    rows have them, and index (the row's number), each (batch,). Rows of a stream add `position`: the last one's reader,
    pass, block and sequence.
    """
    names = [name for name in tokenizer.model_input_names if name in rows[0]]
    inputs = [{name: row[name] for name in names} for row in rows]
    batch: dict[str, Tensor] = dict(tokenizer.pad(inputs, pad_to_multiple_of=MULTIPLE, return_tensors="pt"))
    if "label" in rows[0]:
        batch["labels"] = torch.tensor([row["label"] for row in rows])
    batch["index"] = torch.tensor([row["index"] for row in rows])
    if "position" in rows[-1]:
        batch["position"] = torch.tensor(rows[-1]["position"])
    return batch
