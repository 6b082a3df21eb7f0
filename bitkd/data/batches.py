"""How rows are put into batches. It imports no torch, so that planning needs none."""

from dataclasses import dataclass

from bitkd.errors import InputError

MULTIPLE = 8
"""Batches are padded to a multiple of this many tokens, because tensor cores are fast with it."""


@dataclass(frozen=True)
class LoaderSpec:
    """How a data module's rows are loaded for one training."""

    batch_size: int = 32
    """Rows of an optimizer step, over all processes and accumulated micro-batches."""

    total_batches: int | None = None
    """Micro-batches of each process in one Lightning epoch. None: as many as one pass over the rows makes, so that a
    Trainer's `max_epochs` counts passes. With a number, one Lightning epoch can span a whole training of many passes,
    which is what an exact resumption needs."""

    accumulate: int = 1
    """Micro-batches that an optimizer step is divided into: the Trainer's `accumulate_grad_batches`."""

    seed: int = 0
    """Seed of the order of rows."""

    eval_batch_size: int = 64
    """Rows of a validation batch of each process."""

    num_workers: int = 0
    """Loader processes of each process; 0 loads in the process itself."""

    ahead: int | None = None
    """Batches that a thread prepares ahead, if there are no loader processes. None: 2 where the trainer's device is a GPU,
    which computes meanwhile, else 0."""

    padded_length: int | None = None
    """Tokens that every training batch is padded to. None: those of its longest row, rounded up to a multiple of 8."""


def effective_batch_size(rows: int, batch_size: int, parts: int) -> int:
    """Rows of an optimizer step: `batch_size`, or all rows if there are fewer, in `parts` equal parts.

    Raises InputError if batch_size does not divide into `parts`, or if there are fewer rows than parts.
    """
    if batch_size % parts:
        raise InputError(
            f"batch_size={batch_size} does not divide into {parts} equal parts (processes · accumulated batches); "
            f"use a multiple of {parts}"
        )
    size = min(batch_size, rows // parts * parts)
    if size < 1:
        raise InputError(f"{rows} rows cannot be divided among {parts} processes and accumulated batches; use fewer")
    return size
