"""What task rows and corpus have in common: tokenized rows, bucketed batches, exact resumption."""

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from bitkd.data.batches import MULTIPLE
from bitkd.data.sampler import EvalBatchSampler, TrainBatchSampler


class TokenizedDataModule(pl.LightningDataModule):
    """Loads batches of tokenized rows: dicts of input_ids, attention_mask, token_type_ids (where the model has them),
    each (batch, length), labels (of a task) and index (the row's number), each (batch,).

    batch_size: rows of an optimizer step over all processes and `accumulate` micro-batches.
    total_batches: micro-batches of the whole stage.  start_batch: where to begin; a resumed fit sets it.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        batch_size: int,
        total_batches: int,
        accumulate: int,
        seed: int,
        eval_batch_size: int,
        num_workers: int,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.batch_size = batch_size
        self.total_batches = total_batches
        self.accumulate = accumulate
        self.seed = seed
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.start_batch = 0
        self.train_rows: Dataset | None = None
        self.dev_rows: dict[str, Dataset] = {}

    @property
    def dev_names(self) -> list[str]:
        """Names of the dev sets; the first one selects checkpoints."""
        return list(self.dev_rows)

    @property
    def fit_dev_names(self) -> list[str]:
        """The dev sets that are looked at during a fit; the others are for the end of a stage."""
        return self.dev_names

    @property
    def num_rows(self) -> dict[str, int]:
        """Rows of each split."""
        return {"train": len(self._train), **{name: len(rows) for name, rows in self.dev_rows.items()}}

    @property
    def _train(self) -> Dataset:
        if self.train_rows is None:
            raise RuntimeError("call setup() first")
        return self.train_rows

    def train_dataloader(self) -> DataLoader:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sampler = TrainBatchSampler(
            lengths_of(self._train),
            self.batch_size,
            self.total_batches,
            self.seed,
            rank,
            world,
            self.accumulate,
            self.start_batch,
        )
        return self._loader(self._train, sampler)

    def val_dataloader(self) -> list[DataLoader]:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        fitting = self.trainer is not None and self.trainer.state.fn == "fit"
        return [
            self._loader(rows, EvalBatchSampler(lengths_of(rows), self.eval_batch_size, rank, world))
            for rows in (self.dev_rows[name] for name in (self.fit_dev_names if fitting else self.dev_names))
        ]

    def loader_of(self, rows: Dataset) -> DataLoader:
        """All rows in batches, each once."""
        return self._loader(rows, EvalBatchSampler(lengths_of(rows), self.eval_batch_size))

    def importance_batches(self, rows: int) -> Iterator[dict[str, Tensor]]:
        """Batches of about `rows` training rows, chosen by the seed."""
        steps = max(1, min(rows, len(self._train)) // self.batch_size)
        sampler = TrainBatchSampler(lengths_of(self._train), self.batch_size, steps, self.seed)
        yield from self._loader(self._train, sampler)

    def _loader(self, rows: Dataset, batches: Sampler[list[int]]) -> DataLoader:
        # A generator of its own: making an iterator would otherwise draw from the global random state.
        generator = torch.Generator().manual_seed(self.seed)
        return DataLoader(
            rows,
            batch_sampler=batches,
            collate_fn=self.collate,
            num_workers=self.num_workers,
            generator=generator,
            pin_memory=torch.cuda.is_available(),
        )

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Pad rows to the longest of them, to a multiple of 8 tokens."""
        names = [name for name in self.tokenizer.model_input_names if name in rows[0]]
        inputs = [{name: row[name] for name in names} for row in rows]
        batch = dict(self.tokenizer.pad(inputs, pad_to_multiple_of=MULTIPLE, return_tensors="pt"))
        if "label" in rows[0]:
            batch["labels"] = torch.tensor([row["label"] for row in rows])
        batch["index"] = torch.tensor([row["index"] for row in rows])
        return batch


def lengths_of(rows: Dataset) -> np.ndarray:
    """Tokens of each row."""
    return np.asarray(rows.with_format("numpy")["length"][:])


def encode_texts(tokenizer: Any, texts: list[list[str]], max_length: int) -> dict[str, list]:
    """Tokens of one or two columns of texts, with the columns `length` and `truncated` (whether a row was cut)."""
    encoded: dict[str, list] = dict(tokenizer(*texts, truncation=False, verbose=False))
    truncated = [len(ids) > max_length for ids in encoded["input_ids"]]
    for place in [place for place, long in enumerate(truncated) if long]:
        cut = tokenizer(*(column[place] for column in texts), truncation=True, max_length=max_length)
        for name in encoded:
            encoded[name][place] = cut[name]
    return {**encoded, "length": [len(ids) for ids in encoded["input_ids"]], "truncated": truncated}
