"""Training on a corpus while it is read: blocks of documents are divided among readers, and loaders resume exactly."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from bitkd.data.batches import LoaderSpec, effective_batch_size
from bitkd.data.corpus_rows import StreamRows, is_held_out
from bitkd.data.documents import Documents
from bitkd.data.loader import Loader
from bitkd.data.modules import TokenizedDataModule
from bitkd.data.packing import Packer
from bitkd.data.tokenized import Padding, collate
from bitkd.errors import InputError

STREAM_BLOCK = 64
"""Number of documents of a stream that a reader packs together. Random segments come from the same block."""


@dataclass(frozen=True)
class Position:
    """How far a reader of a stream has come: the pass, the block and the number of its last sequence."""

    epoch: int = 0
    block: int = -1
    sequence: int = 0


class StreamDataModule(TokenizedDataModule):
    """Loaders of a corpus that is read during training, for General KD.

    rows: the corpus.
    loader: sizes and order of batches. Each Lightning epoch begins a new pass over the corpus, packed and shuffled
        anew. With `total_batches`, the epoch ends after this number and may have several passes. With None, it ends
        with the pass; that needs a single process, because the parts of several processes differ in length.
    """

    rows: StreamRows

    def __init__(self, rows: StreamRows, loader: LoaderSpec | None = None) -> None:
        super().__init__(rows, loader)
        self._positions: dict[int, Position] = {}

    def resume(self, batch: int, positions: Mapping[int, Sequence[int]]) -> None:
        """Let the next training loader continue after the `batch` micro-batches that were taken before.

        positions: reader of this process -> pass, block and sequence of its last batch (the four numbers of a batch's
        `position`). Exact with `total_batches`, for a training of one Lightning epoch.
        """
        super().resume(batch, positions)
        self._positions = {reader: Position(*place) for reader, place in positions.items()}

    def train_dataloader(self) -> Loader:
        spec, (rank, world) = self.loader, self._place
        if spec.total_batches is None and world > 1:
            raise InputError(
                f"a stream has parts of different lengths for each of {world} processes; give total_batches in its LoaderSpec"
            )
        start, (positions, self._positions) = self._take_start(), (self._positions, {})
        stream = Stream(
            self.rows.documents, self.rows.packer, spec.seed, rank, world, spec.num_workers, start, positions
        )
        parts = world * spec.accumulate
        size = effective_batch_size(spec.batch_size, spec.batch_size, parts) // parts
        join = partial(collate, Padding.of(self.rows.tokenizer))
        return StreamLoader(stream, spec.total_batches, batch_size=size, collate_fn=join, **self._options)

    def importance_batches(self, rows: int) -> Iterator[dict[str, Tensor]]:
        """Batches of about `rows` sequences, chosen by the seed: for `estimate_importance`."""
        size, padding = self.loader.batch_size, Padding.of(self.rows.tokenizer)
        sequences = iter(Stream(self.rows.documents, self.rows.packer, self.loader.seed))
        for _ in range(max(1, rows // size)):
            yield collate(padding, list(itertools.islice(sequences, size)))


class Stream(IterableDataset[dict[str, Any]]):
    """Packed sequences of this reader's documents, pass after pass.

    There are `world` ranks with `workers` loader processes each. Reader r takes every block b with b % readers == r.
    start: batches that were taken before. A loader asks its processes in turn, beginning with the first; after a
        restart the processes therefore exchange their parts.
    positions: how far each reader of this rank had come.
    """

    first_pass = 0
    """Number of the pass that the next iteration begins with."""

    one_pass = False
    """Whether an iteration ends with its pass."""

    def __init__(
        self,
        documents: Documents,
        packer: Packer,
        seed: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        start: int = 0,
        positions: Mapping[int, Position] | None = None,
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
        position = self.positions.get(worker, Position(self.first_pass))
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
            if self.one_pass:
                return


class StreamLoader(Loader):
    """`total` batches of a stream; with None, one pass. Each further iteration begins a new pass."""

    def __init__(self, stream: Stream, total: int | None, **options: Any) -> None:
        super().__init__(stream, **options)
        self.stream = stream
        self.total = total
        self.iterations = 0
        stream.one_pass = total is None

    def __iter__(self) -> Any:
        if self.iterations:  # only the first iteration resumes
            self.stream.positions, self.stream.start = {}, 0
        self.stream.first_pass = self.iterations
        self.iterations += 1
        left = None if self.total is None else self.total - self.stream.start
        return itertools.islice(super().__iter__(), left)


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
