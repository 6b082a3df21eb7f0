"""How large batches are. It needs no torch, so that a plan can be made without."""

from bitkd.errors import InputError

MULTIPLE = 8
"""Batches are padded to a multiple of this many tokens, which tensor cores like."""


def fitting_batch(rows: int, batch_size: int, parts: int) -> int:
    """Rows of a step: batch_size, or all rows where there are fewer, in `parts` equal parts."""
    if batch_size % parts:
        raise InputError(
            f"batch_size={batch_size} does not divide into {parts} equal parts (processes · accumulated batches); "
            f"use a multiple of {parts}"
        )
    fitting = min(batch_size, rows // parts * parts)
    if fitting < 1:
        raise InputError(f"{rows} rows cannot be divided among {parts} processes and accumulated batches; use fewer")
    return fitting
