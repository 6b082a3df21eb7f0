"""Which columns of a batch a model reads."""

from torch import Tensor

NOT_READ = ("labels", "index", "position")
"""Columns of a batch that are about its rows: labels, row numbers, and the place in a stream."""


def model_inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The columns of a batch that a model's forward takes as keyword arguments."""
    return {name: column for name, column in batch.items() if name not in NOT_READ}
