"""Batches of rows of similar length: seeded, the same for any number of processes, and able to start anywhere."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from bitkd.data.batches import effective_batch_size

POOL_BATCHES = 50
"""Number of batches sorted by length together. Larger: less padding, but rows are shuffled less."""


class TrainBatchSampler(torch.utils.data.Sampler[list[int]]):
    """Micro-batches of row numbers. They form one endless sequence, of which each Lightning epoch takes the next part.

    lengths: tokens of each row.
    batch_size: rows of an optimizer step. Each such batch is divided among `world_size` processes times `accumulate`
        micro-batches, so that any number of processes trains on the same batches.
    total_batches: micro-batches of a Lightning epoch; None: as many as one pass over the rows makes.
    start: micro-batches to skip at the beginning of the first epoch, to resume; `len` still counts them, as Lightning
        does.

    Every pass shuffles the rows anew and leaves out those that do not fill its last batch. If there are fewer rows than
    batch_size, one batch has all of them.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        batch_size: int,
        total_batches: int | None,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        start: int = 0,
    ) -> None:
        self.lengths = np.asarray(lengths)
        self.batch_size = effective_batch_size(len(lengths), batch_size, world_size * accumulate)
        self.seed = seed
        self.rank, self.world_size, self.accumulate = rank, world_size, accumulate
        self.total_batches = self.batches_per_pass if total_batches is None else total_batches
        self.start = start
        self._epoch: int | None = None

    @property
    def batches_per_pass(self) -> int:
        """Micro-batches of each process in one pass over the rows."""
        return self.steps_per_pass * self.accumulate

    @property
    def steps_per_pass(self) -> int:
        """Optimizer steps in one pass over the rows."""
        return len(self.lengths) // self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this at the start of every epoch, counted from 0."""
        if self._epoch is not None and epoch != self._epoch:
            self.start = 0  # only the resumed epoch begins in the middle
        self._epoch = epoch

    def __len__(self) -> int:
        return self.total_batches

    def __iter__(self) -> Iterator[list[int]]:
        before = (self._epoch or 0) * self.total_batches
        position, end = before + self.start, before + self.total_batches
        while position < end:
            number, offset = divmod(position, self.batches_per_pass)
            batches = self._pass(number)
            for micro in range(offset, min(self.batches_per_pass, offset + end - position)):
                step, part = divmod(micro, self.accumulate)
                first = part * self.world_size + self.rank
                yield batches[step][first :: self.world_size * self.accumulate].tolist()
                position += 1

    def _pass(self, number: int) -> list[np.ndarray]:
        """The batches of all optimizer steps of one pass over the rows."""
        random = np.random.default_rng([self.seed, number])
        order = random.permutation(len(self.lengths))
        pool_rows = POOL_BATCHES * self.batch_size
        pools = [order[i : i + pool_rows] for i in range(0, len(order), pool_rows)]
        # The sort is stable and the rows are shuffled: in each pass, rows of equal length are in a new order.
        rows = np.concatenate([pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools])
        # The rows left out must not always be the longest: choose them at random.
        left_out = len(rows) - self.steps_per_pass * self.batch_size
        rows = np.delete(rows, random.choice(len(rows), left_out, replace=False))
        batches = rows.reshape(self.steps_per_pass, self.batch_size)
        return list(batches[random.permutation(len(batches))])


class EvalBatchSampler(torch.utils.data.Sampler[list[int]]):
    """Batches of all rows, longest first. Each row comes exactly once, on one rank; none is repeated to fill a batch."""

    def __init__(
        self, lengths: Sequence[int] | np.ndarray, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        own = np.argsort(-np.asarray(lengths), kind="stable")[rank::world_size]
        self.batches = [own[i : i + batch_size].tolist() for i in range(0, len(own), batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)
