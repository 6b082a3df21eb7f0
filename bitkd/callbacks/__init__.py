"""What hooks into a fit."""

from bitkd.callbacks.weight_splitting import WeightSplitting

__all__ = ["WeightSplitting"]
