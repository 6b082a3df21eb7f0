"""Batches of rows of like length: seeded, the same for any number of processes, and able to start anywhere."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from bitkd.data.batches import fitting_batch

POOL = 50
"""Batches that are sorted by length together: more waste less padding and mix rows less."""


class TrainBatchSampler(torch.utils.data.Sampler[list[int]]):
    """`total_batches` micro-batches of row numbers, one flat sequence across the epochs of the data.

    lengths: tokens of each row.  batch_size: rows of an optimizer step; each such batch is dealt out to `world_size`
    processes times `accumulate` micro-batches, so that any split sees the batch that a single process sees.
    start: micro-batches to leave out at the beginning, for resuming; `len` still counts them, as Lightning does.

    Every epoch shuffles the rows anew; rows that do not fill the last batch of an epoch are left out of it. Fewer rows
    than batch_size give a smaller batch of all of them.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        batch_size: int,
        total_batches: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        start: int = 0,
    ) -> None:
        self.lengths = np.asarray(lengths)
        self.batch_size = fitting_batch(len(lengths), batch_size, world_size * accumulate)
        self.total_batches = total_batches
        self.seed = seed
        self.rank, self.world_size, self.accumulate = rank, world_size, accumulate
        self.start = start

    @property
    def batches_per_epoch(self) -> int:
        """Micro-batches of each process in one pass over the rows."""
        return self.steps_per_epoch * self.accumulate

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the rows."""
        return len(self.lengths) // self.batch_size

    def __len__(self) -> int:
        return self.total_batches

    def __iter__(self) -> Iterator[list[int]]:
        position = self.start
        while position < self.total_batches:
            epoch, offset = divmod(position, self.batches_per_epoch)
            batches = self._epoch(epoch)
            for micro in range(offset, min(self.batches_per_epoch, offset + self.total_batches - position)):
                step, part = divmod(micro, self.accumulate)
                share = part * self.world_size + self.rank
                yield batches[step][share :: self.world_size * self.accumulate].tolist()
                position += 1

    def _epoch(self, epoch: int) -> list[np.ndarray]:
        """The effective batches of one pass over the rows."""
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(len(self.lengths))
        pools = [order[i : i + POOL * self.batch_size] for i in range(0, len(order), POOL * self.batch_size)]
        # Shuffled before, sorted stably: rows of one length meet in another order each epoch.
        rows = np.concatenate([pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools])
        # The remainder left out must not always be the longest rows: cut it off at random.
        left_out = len(rows) - self.steps_per_epoch * self.batch_size
        rows = np.delete(rows, random.choice(len(rows), left_out, replace=False))
        batches = rows.reshape(self.steps_per_epoch, self.batch_size)
        return list(batches[random.permutation(len(batches))])


class EvalBatchSampler(torch.utils.data.Sampler[list[int]]):
    """Every row exactly once, on one rank only, no row padded; longest rows first."""

    def __init__(
        self, lengths: Sequence[int] | np.ndarray, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        mine = np.argsort(-np.asarray(lengths), kind="stable")[rank::world_size]
        self.batches = [mine[i : i + batch_size].tolist() for i in range(0, len(mine), batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)
