"""Dropout of attention probabilities that takes a quarter of the random numbers on a CPU."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LEVELS = 1 << 16
"""A rate is rounded to this many levels, so that one 64-bit random number decides four elements."""


class _Dropout(torch.autograd.Function):
    """x / (1 - p) where an element is kept, else 0, in x's type; `dropped` is p * LEVELS."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: int) -> Tensor:
        numbers = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        kept = numbers.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - LEVELS // 2
        ctx.save_for_backward(kept)
        ctx.scale = LEVELS / (LEVELS - dropped)
        return (x * ctx.scale).mul_(kept)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return (gradient * ctx.scale).mul_(kept), None


def dropout(x: Tensor, p: float) -> Tensor:
    """Dropout of `x` in training.  p: rate, 0 to below 1; on a CPU it is rounded to a multiple of 1 / 65536.

    PyTorch draws one double for each element on a CPU: with 12 heads and 128 tokens that is a tenth of a training step.
    """
    dropped = round(p * LEVELS)
    if x.device.type != "cpu" or torch.compiler.is_compiling() or not 0 < dropped < LEVELS:
        return nn.functional.dropout(x, p)
    kept: Tensor = _Dropout.apply(x, dropped)
    return kept
