"""Activations of a few bits with a learned step and shift (LSQ, arXiv:1902.08153; BiT, arXiv:2205.13016)."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bitkd.errors import InputError
from bitkd.quant.inputs import InputQuantizer

LEAST_STEP = 1e-6
"""A step that training brings below this is read as this, so that codes stay finite; its gradient passes."""


class Levels(NamedTuple):
    """The codes that there are."""

    lowest: int
    highest: int

    signs: bool
    """Whether they are -1 and +1 only."""


def levels_of(bits: int, signed: bool) -> Levels:
    """-2^(bits-1) … 2^(bits-1)-1, of 1 bit -1 and +1; 0 … 2^bits-1 if `signed` is False."""
    if not signed:
        return Levels(0, 2**bits - 1, False)
    return Levels(-1, 1, True) if bits == 1 else Levels(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1, False)


class _Elastic(torch.autograd.Function):
    """Forward: `value` in place of `x`.  Backward: that of codes * step with codes = round((x - shift) / step).

    x: passes where its code is within the levels, and so does -shift.  step: LSQ's, times `factor`; of signs, the sign.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, step: Tensor, shift: Tensor | None, value: Tensor, levels: Levels, factor: float
    ) -> Tensor:
        ctx.levels, ctx.factor = levels, factor
        ctx.save_for_backward(x, step, shift)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, step, shift = ctx.saved_tensors
        levels: Levels = ctx.levels
        with torch.autocast(grad.device.type, enabled=False):
            moved, size = _moved(x, shift), _size(step)
            ratio, wide = moved / size, grad.float()
            inside = (ratio >= levels.lowest) & (ratio <= levels.highest)
            passed = wide * inside
            grad_step = grad_shift = None
            if ctx.needs_input_grad[1]:
                codes = _codes(moved, size, levels)
                slope = codes if levels.signs else codes - ratio * inside
                grad_step = ((wide * slope).sum() * ctx.factor).to(step.dtype)
            if shift is not None and ctx.needs_input_grad[2]:
                grad_shift = -passed.reshape(-1, passed.shape[-1]).sum(0).to(shift.dtype)
        return passed.to(x.dtype), grad_step, grad_shift, None, None, None


def _moved(x: Tensor, shift: Tensor | None) -> Tensor:
    return x.float() if shift is None else x.float() - shift.float()


def _size(step: Tensor) -> Tensor:
    return step.detach().float().clamp_min(LEAST_STEP)


def _codes(moved: Tensor, size: Tensor, levels: Levels) -> Tensor:
    if levels.signs:  # adding 0.0 turns -0.0 into +0.0
        return torch.copysign(torch.ones_like(moved), moved + 0.0)
    return (moved / size).round_().clamp_(levels.lowest, levels.highest)


class Elastic(InputQuantizer):
    """Codes of (x - shift) / step with a learned step for all tokens and, for a Linear's input, a learned shift per feature.

    Codes are those of `levels_of`: of 1 bit the sign, zero counting as +1, else rounded. The shift is not added back (BiT's
    order): the Linear behind it has a bias for that. Queries, keys, values and probabilities have none, because the Linears
    that they come from have one.

    Gradients are LSQ's. That of the step is divided by √(features · highest code), so that padding, batches and the number of
    processes change nothing; attention's tensors, whose width can be that of the batch, count as one feature.

    `calibrate` of bitkd.models.calibration gives the step its start; until then the quantizer is refused.

    features: of a Linear's input; None for no shift.  signed: False for what has no negative values.
    """

    def __init__(self, bits: int, features: int | None = None, signed: bool = True) -> None:
        super().__init__(bits)
        self.signed = signed
        self.levels = levels_of(bits, signed)
        self.factor = ((features or 1) * self.levels.highest) ** -0.5
        self.step = nn.Parameter(torch.zeros(()))
        self.shift = None if features is None else nn.Parameter(torch.zeros(features))
        self._calibrated = False

    @property
    def calibrated(self) -> bool:
        """Whether the step was set: by `start`, or by weights that were loaded. A step is never 0 afterwards."""
        if not self._calibrated:  # reads the step on the host, for the last time if it was set
            self._calibrated = bool(self.step.detach() != 0)
        return self._calibrated

    @property
    def size(self) -> Tensor:
        """What codes are multiplied by: the step, positive, in FP32, without a gradient."""
        self._check()
        return _size(self.step)

    @torch.no_grad()
    def start(self, magnitude: Tensor) -> None:
        """Set the step by the mean |x| over what is not 0; the shift starts at 0.

        1 bit signed: the mean itself, which has the least squared error (BWN, arXiv:1603.05279; BiT's code starts at twice
        this). Otherwise 2 · mean / √(highest code), LSQ's start. Zeros do not count because half of what a ReLU gives is zero,
        and so are the probabilities of padding; published code counts them and takes 4 · mean instead.
        """
        start = magnitude if self.levels.signs else 2 * magnitude / self.levels.highest**0.5
        self.step.copy_(start.clamp_min(LEAST_STEP))
        self._calibrated = True

    @torch.no_grad()
    def clear(self) -> None:
        self.step.zero_()
        self._calibrated = False

    @torch.no_grad()
    def codes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            moved, size = _moved(x, self.shift), self.size
            return _codes(moved, size, self.levels), size

    def forward(self, x: Tensor) -> Tensor:
        codes, size = self.codes(x)
        return self._passed(x, (codes * size).to(x.dtype))

    def carrier(self, x: Tensor) -> Tensor:
        return self._passed(x, x.detach())

    def _passed(self, x: Tensor, value: Tensor) -> Tensor:
        quantized: Tensor = _Elastic.apply(x, self.step, self.shift, value, self.levels, self.factor)
        return quantized

    def _check(self) -> None:
        if not torch.compiler.is_compiling() and not self.calibrated:
            raise InputError(
                f"activations of {self.bits} bits have a step that is learned, and it has no start yet; call "
                "bitkd.calibrate(model, batches) with some training rows before the model is used"
            )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, signed={self.signed}"
