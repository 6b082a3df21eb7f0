"""Quantizers as pure functions: an integer-valued code times a scale, with a straight-through gradient.

Scales and thresholds are summed in float64 and rounded to FP32, so that they depend neither on the order of
summation nor on autocast; no gradient flows through them. Codes are returned in a floating-point type, ready
for a matmul.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

TERNARY_THRESHOLD = 0.7
"""Ternary Weight Networks (arXiv:1605.04711): weights within 0.7 * mean|w| become zero."""

FOUR_LEVELS_START = 2 / 3
"""Scale of four levels, over mean|w|, that their codes are taken at. On MiniLM's matrices any start from 0.6 to 0.7 ends within
1 % of the least error."""

SMALLEST = 1e-30
"""What scales are divided by in place of 0."""


def exact_type(w: Tensor) -> torch.dtype:
    """What sums of w are taken in."""
    return torch.float32 if w.device.type == "mps" else torch.float64  # Apple GPUs have no float64


def _mean_magnitude(w: Tensor, per_row: bool, count: Tensor | int | None = None) -> Tensor:
    """Sum of |w| over `count` (None: the number of elements), one for each row or for all of `w`, in float64."""
    total = torch.linalg.vector_norm(w, 1, dim=-1 if per_row else None, keepdim=per_row, dtype=exact_type(w))
    return total / (count if count is not None else w.shape[-1] if per_row else w.numel())


@torch.no_grad()
def binary_codes(w: Tensor, per_row: bool = False) -> tuple[Tensor, Tensor]:
    """Codes -1 and +1 in w's type (zero counts as +1) and the FP32 scale mean|w| (BWN, arXiv:1603.05279).

    per_row: one scale for each slice along the last dimension, of shape (..., 1); otherwise one for all, of shape ().
    """
    with torch.autocast(w.device.type, enabled=False):
        one = torch.ones((), dtype=w.dtype, device=w.device)
        # Adding 0.0 turns -0.0 into +0.0; copysign is several times faster than torch.where.
        return torch.copysign(one, w + 0.0), _mean_magnitude(w, per_row).float()


@torch.no_grad()
def ternary_codes(w: Tensor, per_row: bool = False) -> tuple[Tensor, Tensor]:
    """Codes -1, 0 and +1 in w's type and the FP32 scale, the mean |w| beyond the threshold (TWN, arXiv:1605.04711).

    per_row: as in `binary_codes`. A group of zeros has codes 0 and scale 0.
    """
    with torch.autocast(w.device.type, enabled=False):
        threshold = (TERNARY_THRESHOLD * _mean_magnitude(w, per_row)).float().to(w.dtype)
        kept = w * (w.abs() > threshold)
        count = torch.count_nonzero(kept, dim=-1).unsqueeze(-1) if per_row else torch.count_nonzero(kept)
        return kept.sign(), _mean_magnitude(kept, per_row, count.clamp_min(1)).float()


@torch.no_grad()
def four_level_codes(w: Tensor, per_row: bool = False) -> tuple[Tensor, Tensor]:
    """Codes -3, -1, +1 and +3 in w's type and the FP32 scale: four levels without zero, at equal steps (ParetoQ,
    arXiv:2502.02631).

    The codes are those of a scale of FOUR_LEVELS_START * mean|w|; the scale is the one of least squared error for them.
    per_row: as in `binary_codes`. A group of zeros has codes +1 and scale 0.
    """
    with torch.autocast(w.device.type, enabled=False):
        start = FOUR_LEVELS_START * _mean_magnitude(w, per_row)
        codes = _nearest_odd(w, start.float().to(w.dtype))
        products, magnitudes = (_mean_magnitude(x, per_row, 1) for x in (w * codes, codes))
        # Codes are ±1 and ±3, so Σ code² = 4 Σ|code| - 3 n.
        return codes, (products / (4 * magnitudes - 3 * (w.shape[-1] if per_row else w.numel()))).float()


@torch.no_grad()
def symmetric_codes(w: Tensor, per_row: bool = True, *, bits: int) -> tuple[Tensor, Tensor]:
    """Whole codes in w's type, and the FP32 scale: the largest |w| over the largest code 2^(bits-1)-1.

    per_row: as in `binary_codes`. A group of zeros has codes 0 and scale 0.
    """
    with torch.autocast(w.device.type, enabled=False):
        largest = w.abs().amax(dim=-1, keepdim=True) if per_row else w.abs().amax()
        scale = largest.float() / (2 ** (bits - 1) - 1)
        return (w / scale.clamp_min(SMALLEST)).round().to(w.dtype), scale


codes_of_4_bits = partial(symmetric_codes, bits=4)
codes_of_8_bits = partial(symmetric_codes, bits=8)


@torch.no_grad()
def column_scales_of(w: Tensor) -> Tensor:
    """FP32 scales of the columns, (columns,), with mean 1: each column's mean|w| over that of all.

    w: (rows, columns).  With the scales of the rows of w / column scales this is, but for 0.1 % of the error on MiniLM's
    matrices, the best product of a row and a column vector for |w| (SVID, arXiv:2402.11295).
    A column of zeros has scale 0, by which its input is multiplied: it stays zero.
    """
    with torch.autocast(w.device.type, enabled=False):
        # Several times faster along columns than vector_norm.
        totals = w.abs().sum(0, dtype=exact_type(w))
        return (totals / totals.mean().clamp_min(SMALLEST)).float()


@torch.no_grad()
def binary_codes_at(w: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The codes of w for a scale that is learned, and the derivative of codes * scale by the scale.

    scale: () or (rows, 1), positive.  Both results are shaped like w.
    """
    codes = torch.copysign(torch.ones((), dtype=w.dtype, device=w.device), w + 0.0)
    return codes, codes


@torch.no_grad()
def ternary_codes_at(w: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """As `binary_codes_at`, for the nearest of -1, 0 and 1; the derivative is LSQ's (arXiv:1902.08153)."""
    steps = w / scale
    codes = steps.round().clamp(-1, 1)
    return codes, _lsq_slope(steps, codes, 1)


@torch.no_grad()
def four_level_codes_at(w: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """As `binary_codes_at`, for the nearest of -3, -1, 1 and 3; the derivative is LSQ's (ParetoQ, arXiv:2502.02631)."""
    codes = _nearest_odd(w, scale)
    return codes, _lsq_slope(w / scale, codes, 4)


def _nearest_odd(w: Tensor, scale: Tensor) -> Tensor:
    """-3, -1, 1 or 3, the nearest to w / scale."""
    one = torch.ones((), dtype=w.dtype, device=w.device)
    return torch.copysign(torch.where(w.abs() > 2 * scale, 3 * one, one), w + 0.0)


def _lsq_slope(steps: Tensor, codes: Tensor, largest: int) -> Tensor:
    """The derivative of codes * scale by the scale if rounding is straight-through: the code, less the weight in steps where that
    is no more than `largest`."""
    return codes - steps.masked_fill(steps.abs() > largest, 0)


@dataclass(frozen=True)
class ClippedCodes:
    """Codes and scale of weights that are clipped first, as TernaryBERT's code does (`TwnQuantizer`, arXiv:2009.12812)."""

    codes_of: Callable[..., tuple[Tensor, Tensor]]
    clip: float

    def __call__(self, w: Tensor, per_row: bool = False) -> tuple[Tensor, Tensor]:
        """As `ternary_codes`, of w clipped to ±clip."""
        return self.codes_of(w.detach().clamp(-self.clip, self.clip), per_row)


class _StraightThrough(torch.autograd.Function):
    """Forward: `quantized` in place of `x`.  Backward: the gradient unchanged, zero where |x| > clip."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, quantized: Tensor, clip: float | None) -> Tensor:
        ctx.clip = clip
        ctx.save_for_backward(*([x] if clip is not None else []))
        return quantized

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        for x in ctx.saved_tensors:
            grad = clip_gradient(grad, x, ctx.clip)
        return grad, None, None


def clip_gradient(grad: Tensor, w: Tensor, clip: float | None) -> Tensor:
    """`grad`, zero where |w| > clip (TernaryBERT, arXiv:2009.12812, clips at 2.5)."""
    return grad if clip is None else grad.masked_fill(w.abs() > clip, 0)


def quantize_weight(
    w: Tensor, codes_of: Callable[..., tuple[Tensor, Tensor]], per_row: bool = False, *, clip: float | None = None
) -> Tensor:
    """codes * scale in w's type, straight-through gradient; zero gradient where |w| > clip.

    codes_of: gives the codes and the scale of (w, per_row), as `binary_codes` does.
    """
    codes, scale = codes_of(w, per_row)
    quantized: Tensor = _StraightThrough.apply(w, codes * scale.to(w.dtype), clip)
    return quantized


def binarize(w: Tensor, per_row: bool = False, *, clip: float | None = None) -> Tensor:
    """mean|w| * sign(w) in w's type, straight-through gradient; zero gradient where |w| > clip."""
    return quantize_weight(w, binary_codes, per_row, clip=clip)


def ternarize(w: Tensor, per_row: bool = False, *, clip: float | None = None) -> Tensor:
    """-alpha, 0 or alpha in w's type, straight-through gradient; zero gradient where |w| > clip."""
    return quantize_weight(w, ternary_codes, per_row, clip=clip)


@torch.no_grad()
def token_codes(x: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Dynamic symmetric codes of activations, one scale per token, both FP32.

    x: (..., width), one token along the last dimension.  codes: whole numbers in -(2^(bits-1)-1) … 2^(bits-1)-1.
    scale: (..., 1), the token's largest |x| over the largest code.  A token of zeros has codes 0 and a tiny scale.
    """
    largest = 2 ** (bits - 1) - 1
    with torch.autocast(x.device.type, enabled=False):
        x = x.float()
        # Two reductions read x twice and write nothing; x.abs() would write a copy of it.
        magnitude = torch.maximum(x.amax(dim=-1, keepdim=True), -x.amin(dim=-1, keepdim=True))
        scale = magnitude.clamp_min(1e-30) / largest
        return (x / scale).round_(), scale


def quantize_tokens(x: Tensor, bits: int = 8) -> Tensor:
    """`x` rounded to its token's codes and scaled back, in x's type, straight-through gradient (see
    `token_codes`)."""
    codes, scale = token_codes(x, bits)
    quantized: Tensor = _StraightThrough.apply(x, codes.mul_(scale).to(x.dtype), None)
    return quantized
