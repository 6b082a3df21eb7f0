"""Lightning callbacks."""

from bitkd.callbacks.weight_splitting import WeightSplitting

__all__ = ["WeightSplitting"]
