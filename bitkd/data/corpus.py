"""A text corpus for General KD, packed as a whole or as it streams by."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from bitkd.data.base import TokenizedDataModule
from bitkd.data.documents import Documents
from bitkd.data.packing import Packer
from bitkd.errors import InputError

HELD_OUT = 50
"""Of a corpus packed as a whole, the last document in so many is kept back to validate the loss on; of a stream, every
such document among the first ones."""

STREAM_HELD_OUT_FROM = 5000
"""Documents of a stream that held-out ones are taken from."""

STREAM_BLOCK = 64
"""Documents of a stream that are packed together, by one reader: foreign segments come from among them."""


class CorpusDataModule(TokenizedDataModule):
    """The sequences of a corpus that fits into memory, packed at once, in a new order each epoch.

    Packing is deterministic by `pack_seed`, which is not the order of training: that is `seed`'s.
    """

    def __init__(
        self,
        documents: Documents,
        tokenizer: Any,
        max_length: int = 128,
        batch_size: int = 32,
        total_batches: int = 1,
        accumulate: int = 1,
        seed: int = 0,
        eval_batch_size: int = 64,
        num_workers: int = 0,
        segments: int = 2,
        masking: float = 0.0,
        pack_seed: int = 0,
    ) -> None:
        super().__init__(
            tokenizer, max_length, batch_size, total_batches, accumulate, seed, eval_batch_size, num_workers
        )
        self.documents = documents
        self.packer = Packer(tokenizer, max_length, segments, masking)
        self.pack_seed = pack_seed

    def setup(self, stage: str) -> None:
        if self.train_rows is not None:
            return
        encoded = [ids for ids in self.packer.encode(list(self.documents.read())) if ids]
        held_out = max(1, round(len(encoded) / HELD_OUT))
        if len(encoded) <= held_out:
            raise _too_small(len(encoded))
        self.train_rows = self._packed(encoded[:-held_out])
        self.dev_rows = {"dev": self._packed(encoded[-held_out:])}

    def fingerprint(self) -> str:
        """Changes with the content of the corpus; paths do not count."""
        return self.documents.fingerprint()

    def share(self, other: "CorpusDataModule") -> "CorpusDataModule":
        """Use the sequences that `other` has packed already."""
        self.train_rows, self.dev_rows = other.train_rows, other.dev_rows
        return self

    def _packed(self, documents: list[list[int]]) -> Dataset:
        rows = self.packer.pack(documents, np.random.default_rng(self.pack_seed))
        return Dataset.from_list([row | {"index": index} for index, row in enumerate(rows)])


@dataclass(frozen=True)
class Position:
    """Where a reader of a stream stands: the last sequence that it gave, of which block, in which pass."""

    epoch: int = 0
    block: int = -1
    sequence: int = 0


class StreamDataModule(CorpusDataModule):
    """Sequences of a corpus as it streams by, nothing of it kept: blocks of documents are dealt out to readers (each
    loader process of each rank is one), and a reader packs and shuffles each of its blocks. A corpus that ends begins
    again, packed and shuffled anew.

    positions: logical reader of this rank -> where it stands; a resumed fit sets it.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.positions: dict[int, Position] = {}

    def setup(self, stage: str) -> None:
        if self.dev_rows:
            return
        first = itertools.islice(self.documents.read(), STREAM_HELD_OUT_FROM)
        held_out = [text for number, text in enumerate(first) if is_held_out(number)]
        encoded = [ids for ids in self.packer.encode(held_out) if ids]
        if not encoded:
            raise _too_small(sum(1 for _ in itertools.islice(self.documents.read(), HELD_OUT)))
        self.dev_rows = {"dev": self._packed(encoded)}

    @property
    def num_rows(self) -> dict[str, int]:
        return {name: len(rows) for name, rows in self.dev_rows.items()}

    def train_dataloader(self) -> DataLoader:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        stream = Stream(
            self.documents, self.packer, self.seed, rank, world, self.num_workers, self.start_batch, self.positions
        )
        return DataLoader(
            stream,
            batch_size=self.batch_size // (world * self.accumulate),
            collate_fn=self.collate,
            num_workers=self.num_workers,
            generator=torch.Generator().manual_seed(self.seed),
            pin_memory=torch.cuda.is_available(),
        )

    def importance_batches(self, rows: int) -> Iterator[dict[str, Tensor]]:
        stream = Stream(self.documents, self.packer, self.seed)
        for batch in itertools.islice(_batches(stream, self.batch_size), max(1, rows // self.batch_size)):
            yield self.collate(batch)

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = super().collate(rows)
        if "position" in rows[-1]:
            batch["position"] = torch.tensor(rows[-1]["position"])
        return batch


class Stream(IterableDataset):
    """Endless packed sequences of the documents that fall to this reader.

    Of `world` ranks with `workers` loader processes each, reader r takes every block b with b % readers = r. `start`:
    batches that were taken before; the loader asks its processes in turn, so they change their parts accordingly.
    """

    def __init__(
        self,
        documents: Documents,
        packer: Packer,
        seed: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        start: int = 0,
        positions: dict[int, Position] | None = None,
    ) -> None:
        self.documents = documents
        self.packer = packer
        self.seed = seed
        self.rank, self.world, self.workers = rank, world, max(1, workers)
        self.start = start
        self.positions = positions or {}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        worker = ((info.id if info else 0) + self.start) % self.workers
        position = self.positions.get(worker, Position())
        readers, reader = self.world * self.workers, self.rank * self.workers + worker
        for epoch in itertools.count(position.epoch):
            empty = True
            resumed = position if epoch == position.epoch else Position(epoch)
            first = max(resumed.block, 0)
            for block, texts in blocks(self.documents, first):
                if block % readers != reader:
                    continue
                random = np.random.default_rng([self.seed, epoch, block])
                encoded = [ids for ids in self.packer.encode(texts) if ids]
                rows = list(self.packer.pack(encoded, random))
                empty = empty and not rows
                for place, choice in enumerate(random.permutation(len(rows)).tolist()):
                    if block == resumed.block and place <= resumed.sequence:
                        continue
                    yield rows[choice] | {"index": block, "position": [worker, epoch, block, place]}
            if empty and not first:
                raise InputError(
                    f"the corpus has no block of {STREAM_BLOCK} documents for each of {readers} readers; use fewer processes or "
                    "loader processes, or data.streaming=false"
                )


def blocks(documents: Documents, first: int = 0) -> Iterator[tuple[int, list[str]]]:
    """Numbered blocks of documents from block `first` on, without those that are held out."""
    block: list[str] = []
    number = first
    start = first * STREAM_BLOCK
    for place, text in enumerate(documents.read(start), start=start):
        if not is_held_out(place):
            block.append(text)
        if (place + 1) % STREAM_BLOCK == 0:
            yield number, block
            block, number = [], number + 1
    if block:
        yield number, block


def is_held_out(document: int) -> bool:
    """Whether a document of a stream is for validation."""
    return document < STREAM_HELD_OUT_FROM and document % HELD_OUT == HELD_OUT - 1


def _batches(rows: IterableDataset, size: int) -> Iterator[list[dict[str, Any]]]:
    iterator = iter(rows)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _too_small(documents: int) -> InputError:
    return InputError(
        f"data.corpus holds {documents} documents; it needs at least two, a stream {HELD_OUT} "
        "(headings or blank lines divide documents)"
    )
