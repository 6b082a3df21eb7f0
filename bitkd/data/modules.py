"""Lightning data modules over tokenized rows: bucketed batches, the same for any number of processes.

They work with any Trainer. With several processes, give it `use_distributed_sampler=False`: the batches are already
divided among the processes.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import lightning.pytorch as pl
import numpy as np
import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from torch import Tensor
from torch.utils.data import Sampler

from bitkd.data.augment.augmenter import load_shards
from bitkd.data.batches import LoaderSpec
from bitkd.data.corpus_rows import CorpusRows
from bitkd.data.loader import Loader
from bitkd.data.sampler import EvalBatchSampler, TrainBatchSampler
from bitkd.data.task_rows import TaskRows
from bitkd.data.tokenized import Batches, Padding, lengths_of


class DevRows(Protocol):
    """Tokenized rows to validate on."""

    tokenizer: Any

    @property
    def dev(self) -> dict[str, Dataset]:
        """Name of each dev set -> its rows, with the columns of the tokenizer, `length`, `index` and, if any, `label`."""

    @property
    def dev_names(self) -> list[str]:
        """Names of the dev sets; the first one selects checkpoints."""

    @property
    def fit_dev_names(self) -> list[str]:
        """The dev sets that a fit validates on; the others are used at the end of a stage."""


class TrainRows(DevRows, Protocol):
    """Tokenized rows to train and to validate on."""

    @property
    def train(self) -> Dataset:
        """The training rows, with the same columns."""


class TokenizedDataModule(pl.LightningDataModule):
    """The base of all data modules: validation, and where training begins. For the content of a batch see `Batches`.

    `Trainer.fit` validates on the rows' `fit_dev_names`, `Trainer.validate` on all dev sets.
    """

    rows: DevRows

    def __init__(self, rows: DevRows, loader: LoaderSpec | None = None) -> None:
        super().__init__()
        self.rows = rows
        self.loader = loader or LoaderSpec()
        self._start = 0

    @property
    def dev_names(self) -> list[str]:
        """Names of the dev sets; the first one selects checkpoints."""
        return self.rows.dev_names

    def resume(self, batch: int, positions: Mapping[int, Sequence[int]]) -> None:
        """Let the next training loader skip the `batch` micro-batches that were taken before.

        positions: see `StreamDataModule.resume`; other rows need none.
        """
        self._start = batch

    def val_dataloader(self) -> list[Loader]:
        fitting = self.trainer is not None and self.trainer.state.fn == "fit"
        names = self.rows.fit_dev_names if fitting else self.rows.dev_names
        size, place = self.loader.eval_batch_size, self._place
        return [self._load(rows, EvalBatchSampler(lengths_of(rows), size, *place)) for rows in map(self._dev, names)]

    def loader_of(self, rows: Dataset) -> Loader:
        """All of `rows` in batches, each once, longest first: for `Trainer.predict`."""
        return self._load(rows, EvalBatchSampler(lengths_of(rows), self.loader.eval_batch_size))

    def _dev(self, name: str) -> Dataset:
        return self.rows.dev[name]

    @property
    def _place(self) -> tuple[int, int]:
        """This process's rank, and the number of processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _take_start(self) -> int:
        """Where the next training loader begins; the loaders after it begin at 0."""
        start, self._start = self._start, 0
        return start

    def _load(self, rows: Dataset, batches: Sampler[list[int]], length: int | None = None) -> Loader:
        """length: tokens that every batch is padded to; None: those of its longest row."""
        padded = Batches(rows, Padding.of(self.rows.tokenizer, length))
        return Loader(padded, sampler=batches, batch_size=None, **self._options)

    @property
    def _options(self) -> dict[str, Any]:
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        ahead = self.loader.ahead
        return {
            "num_workers": self.loader.num_workers,
            # Without a generator, making an iterator would change the global random state.
            "generator": torch.Generator().manual_seed(self.loader.seed),
            "pin_memory": on_gpu,
            "ahead": (2 if on_gpu else 0) if ahead is None else ahead,
        }


class RowsDataModule(TokenizedDataModule):
    """Loaders of rows that can be read in any order.

    rows: what to train and validate on.
    loader: sizes and order of batches; with `total_batches=None` one Lightning epoch is one pass, in a new order each.
    """

    rows: TrainRows

    def __init__(self, rows: TrainRows, loader: LoaderSpec | None = None) -> None:
        super().__init__(rows, loader)

    @property
    def train(self) -> Dataset:
        """The rows to train on."""
        return self.rows.train

    def train_dataloader(self) -> Loader:
        spec = self.loader
        sampler = TrainBatchSampler(
            lengths_of(self.train),
            spec.batch_size,
            spec.total_batches,
            spec.seed,
            *self._place,
            accumulate=spec.accumulate,
            start=self._take_start(),
        )
        return self._load(self.train, sampler, spec.padded_length)

    def importance_batches(self, rows: int) -> Iterator[dict[str, Tensor]]:
        """Batches of about `rows` training rows, chosen by the seed: for `estimate_importance`."""
        steps = max(1, min(rows, len(self.train)) // self.loader.batch_size)
        sampler = TrainBatchSampler(lengths_of(self.train), self.loader.batch_size, steps, self.loader.seed)
        yield from self._load(self.train, sampler)


class TaskDataModule(RowsDataModule):
    """Loaders of a task's rows.

    rows: the task's rows; several modules may share them, so that they are tokenized once.
    loader: sizes and order of batches; with `total_batches=None` one Lightning epoch is one pass, in a new order each.
    augmented: folder of augmented rows (`bitkd augment`) to train on in place of the task's own.

    Example:
        rows = TaskRows(task, tokenizer, "data/glue")
        trainer = Trainer(max_epochs=3)
        trainer.fit(module, TaskDataModule(rows, LoaderSpec(batch_size=32)))
    """

    def __init__(self, rows: TaskRows, loader: LoaderSpec | None = None, augmented: Path | None = None) -> None:
        super().__init__(rows, loader)
        self.augmented = augmented

    @cached_property
    def train(self) -> Dataset:
        """The rows to train on. Raises InputError if the folder of augmented ones holds none."""
        return _numbered(load_shards(Path(self.augmented))) if self.augmented else self.rows.train


def _numbered(rows: Dataset) -> Dataset:
    """Augmented rows with their own numbers as `index`, in place of those of the rows that they come from."""
    numbers = np.arange(len(rows))
    fingerprint = Hasher.hash([rows._fingerprint, "numbered"])
    return rows.remove_columns("index").add_column("index", numbers, new_fingerprint=fingerprint)


class CorpusDataModule(RowsDataModule):
    """Loaders of a corpus that is packed as a whole, for General KD.

    rows: the packed corpus; several modules may share it.
    loader: sizes and order of batches; with `total_batches=None` one Lightning epoch is one pass, in a new order each.
    """

    def __init__(self, rows: CorpusRows, loader: LoaderSpec | None = None) -> None:
        super().__init__(rows, loader)
