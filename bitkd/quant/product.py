"""The product of quantized inputs and quantized weights, simulated in floating-point numbers.

Codes, which are whole numbers, are multiplied first and the product is scaled afterwards. FP32 sums of products of small
whole numbers are exact in any order, so training and evaluation agree bit for bit, and so do a ternary layer and the two
binary layers that it was just split into. The executions in integers (`bitkd.quant.packed`, `bitkd.engine`) scale in the
same order and agree as well.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bitkd.quant.functional import SMALLEST, clip_gradient, column_scales_of
from bitkd.quant.inputs import InputQuantizer
from bitkd.quant.reuse import HeldTerms, QuantizedWeight, WeightTerm, read_input, shrink_of

Codes = Callable[..., tuple[Tensor, Tensor]]

LEAST_SCALE = 1e-8
"""A learned scale below it counts as it, so that no step turns its signs around."""


class ProductSpec(NamedTuple):
    """How the weights of a product are quantized."""

    codes: Codes | None
    """Gives the codes and the scale of (w, per_row); None for FP32 weights."""

    per_row: bool
    """One scale per row of a weight instead of one for all of it."""

    clip: float | None
    """No gradient for weights whose magnitude exceeds this."""

    exact: bool = False
    """Multiply whole numbers only, even if the scales of a pair's halves differ: two products instead of one."""

    fits_int8: bool = False
    """Whether int8 holds the codes of one weight."""

    columns: bool = False
    """One scale per column too: the input is multiplied by it, and codes and scales are those of weight / column scale."""

    codes_at: Codes | None = None
    """Gives the codes of (w, scale) and the derivative by the scale, if scales are learned."""


class LearnedScales(NamedTuple):
    """Parameters in place of computed scales."""

    weights: tuple[Tensor, ...] = ()
    """The scale of each weight, () or (rows, 1)."""

    column: Tensor | None = None
    """(columns,). Its gradient is that of the input which it multiplies: codes count as fixed, while LSQ's count as moving."""


NOT_LEARNED = LearnedScales()


@torch.no_grad()
def _quantize_weight(
    weights: tuple[Tensor, ...], spec: ProductSpec, learned: LearnedScales, dtype: torch.dtype, keep: bool
) -> QuantizedWeight:
    """The quantized weight as a sum of levels * scale, and the scale of its columns; a pair of weights counts as its sum.

    dtype: of the levels that are multiplied.  keep: whether a gradient will be asked for.
    """
    with torch.autocast(weights[0].device.type, enabled=False):
        if spec.codes is None:
            terms, column = [(weights[0].detach(), torch.ones((), device=weights[0].device))], None
        else:
            halves, column = codes_and_scales(weights, spec, learned)
            terms = sum_terms(halves, spec.exact)
        whole = spec.codes is not None and spec.fits_int8 and len(weights) == 1
        return QuantizedWeight(
            [
                WeightTerm(levels.to(dtype), scale, levels.to(torch.int8) if keep and whole else None)
                for levels, scale in terms
            ],
            column,
        )


@torch.no_grad()
def codes_and_scales(
    weights: tuple[Tensor, ...], spec: ProductSpec, learned: LearnedScales = NOT_LEARNED
) -> tuple[list[tuple[Tensor, Tensor]], Tensor | None]:
    """The codes and the scale of each of the weights, and the scale of their columns; None if there is none.

    The halves of a pair share one scale of columns, that of their sum.
    """
    assert spec.codes is not None
    column = None
    if spec.columns:
        column = _column_of(weights) if learned.column is None else least(learned.column)
    evened = [_evened(w, column) for w in weights]
    if spec.codes_at is None:
        return [spec.codes(w, spec.per_row) for w in evened], column
    scales = [least(scale) for scale in learned.weights]
    return [(spec.codes_at(w, scale)[0], scale) for w, scale in zip(evened, scales, strict=True)], column


def _column_of(weights: tuple[Tensor, ...]) -> Tensor:
    return column_scales_of(weights[0] if len(weights) == 1 else weights[0] + weights[1])


def _evened(w: Tensor, column: Tensor | None) -> Tensor:
    """w without its columns' scale."""
    return w if column is None else w / column.clamp_min(SMALLEST)


def least(scale: Tensor) -> Tensor:
    """A learned scale as it is used, without gradient."""
    return scale.detach().clamp_min(LEAST_SCALE)


class _Tempered(torch.autograd.Function):
    """A learned scale as it is used; its gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, scale: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return least(scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


def sum_terms(halves: list[tuple[Tensor, Tensor]], exact: bool) -> list[tuple[Tensor, Tensor]]:
    """A weight, or the sum of a pair's halves, as a sum of levels * scale with as few products as possible.

    halves: codes and scale of each.  exact: levels are whole numbers (see ProductSpec).
    """
    if len(halves) < 2:
        return halves
    (first, a1), (second, a2) = halves
    sum_codes, diff_codes, mean_scale, half_diff = first + second, first - second, (a1 + a2) / 2, (a1 - a2) / 2
    if not exact:  # one product with a 4-level matrix; mean_scale is 0 only if both scales are
        ratio = half_diff / mean_scale.clamp_min(1e-30)
        ratio = (ratio[:, None] if ratio.shape == first.shape[:1] else ratio).to(diff_codes.dtype)
        return [(sum_codes + diff_codes * ratio, mean_scale)]
    # A compiled graph cannot look at values; there the second product of a freshly split pair adds zeros.
    if not torch.compiler.is_compiling() and not half_diff.any():  # freshly split
        return [(sum_codes, mean_scale)]
    return [(sum_codes, mean_scale), (diff_codes, half_diff)]


class _LowBitProduct(torch.autograd.Function):
    """x @ quantized(weight)^T + bias, in the type of `operand`; the gradient is that of quantize-dequantize.

    x: its values are not read; it gets the gradient of the quantized input.
    operand, x_scale, x_kept: the input, as `read_input` gives it; x_scale brings back what operand was divided by.
    column: the scale of the columns, by which x and operand are multiplied already; None if there is none.
    tensors: `terms` times the levels, scale and kept levels of a term (see `WeightTerm`), then the weights, then their learned
        scales, if they have any.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        operand: Tensor,
        x_scale: Tensor | None,
        x_kept: Tensor | None,
        spec: ProductSpec,
        bias: Tensor | None,
        column: Tensor | None,
        terms: int,
        *tensors: Any,
    ) -> Tensor:
        flat, trained = tensors[: 3 * terms], tensors[3 * terms :]
        wide = torch.promote_types(operand.dtype, torch.float32)
        with torch.autocast(operand.device.type, enabled=False):
            products = (
                nn.functional.linear(operand, levels).to(wide).mul_(scale.reshape(-1))
                for levels, scale in zip(flat[::3], flat[1::3], strict=True)
            )
            y = next(products)
            for product in products:
                y = y.add_(product)
            if x_scale is not None:
                y = y.mul_(x_scale * shrink_of(operand.dtype))
            if bias is not None:
                y = y.add_(bias)
        ctx.spec, ctx.dtype, ctx.x_dtype, ctx.terms = spec, operand.dtype, x.dtype, terms
        ctx.bias_dtype = None if bias is None else bias.dtype
        x_kept = operand if x_scale is None else x_kept
        kept = [levels if narrow is None else narrow for levels, narrow in zip(flat[::3], flat[2::3], strict=True)]
        ctx.save_for_backward(x_kept, x_scale, column, *flat[1::3], *kept, *trained)
        return y.to(operand.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_kept, x_scale, column, *rest = ctx.saved_tensors
        spec: ProductSpec = ctx.spec
        scales, levels, trained = rest[: ctx.terms], rest[ctx.terms : 2 * ctx.terms], rest[2 * ctx.terms :]
        count = len(trained) if spec.codes_at is None else len(trained) // 2
        needed = ctx.needs_input_grad[8 + 3 * ctx.terms :]
        grad_x = grad_bias = None
        grads: list[Tensor | None] = [None] * len(trained)
        with torch.autocast(grad.device.type, enabled=False):
            narrow = grad.to(ctx.dtype)
            if ctx.needs_input_grad[0]:
                value = _dequantized(levels[0], scales[0])
                for level, scale in zip(levels[1:], scales[1:], strict=True):
                    value = value + _dequantized(level, scale)
                grad_x = (narrow @ value.to(ctx.dtype)).to(ctx.x_dtype)
            if ctx.needs_input_grad[5]:
                grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0, dtype=ctx.bias_dtype)
            if any(needed):  # both halves of a pair see the same input and the same output
                x = x_kept if x_scale is None else _dequantized(x_kept, x_scale)
                shared = narrow.reshape(-1, narrow.shape[-1]).t() @ x.reshape(-1, x.shape[-1]).to(ctx.dtype)
                for i, w in enumerate(trained[:count]):
                    if needed[i]:
                        grads[i] = clip_gradient(_evened(shared.to(w.dtype), column), w, spec.clip)
                for i, scale in enumerate(trained[count:], start=count):
                    if needed[i]:
                        grads[i] = _scale_gradient(shared, trained[i - count], scale, column, spec)
        return grad_x, None, None, None, None, grad_bias, None, None, *[None] * (3 * ctx.terms), *grads


def _scale_gradient(shared: Tensor, w: Tensor, scale: Tensor, column: Tensor | None, spec: ProductSpec) -> Tensor:
    """The gradient of a learned scale, tempered as LSQ does (see `temper`).

    shared: the gradient of codes * scale, (rows, columns).
    """
    assert spec.codes_at is not None
    _, slope = spec.codes_at(_evened(w, column), least(scale))
    products = shared.to(w.dtype) * slope
    total = products.sum(-1, keepdim=True) if scale.dim() else products.sum()
    return total * temper(w.numel() // scale.numel())


def temper(count: int) -> float:
    """What the gradient of the learned scale of `count` numbers is multiplied by: in proportion to their size, scale and numbers
    then move alike (LSQ, arXiv:1902.08153)."""
    return float(count**-0.5)


def _dequantized(codes: Tensor, scale: Tensor) -> Tensor:
    """codes * scale.  The conversion comes first: a product of mixed types is several times slower on a CPU."""
    if codes.dtype == torch.int8:
        return codes.to(scale.dtype).mul_(scale)
    return codes.to(torch.promote_types(codes.dtype, scale.dtype)) * scale


def low_bit_linear(
    reader: nn.Module,
    x: Tensor,
    quantizer: InputQuantizer,
    spec: ProductSpec,
    bias: Tensor | None,
    *weights: Tensor,
    held: HeldTerms | None = None,
    learned: LearnedScales = NOT_LEARNED,
) -> Tensor:
    """x @ quantized(weight)^T + bias, in the type of autocast or of the weights.

    reader: the layer that reads x (see `read_input`).  x: (..., columns).
    weights: one of (rows, columns), or the two halves of a pair, which count as their sum.
    held: where the weights' codes are kept (see `hold_codes`).
    """
    dtype = weights[0].dtype
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
    keep = torch.is_grad_enabled()

    def make() -> QuantizedWeight:
        return _quantize_weight(weights, spec, learned, dtype, keep)

    trained = (*weights, *learned.weights)
    known = trained if learned.column is None else (*trained, learned.column)
    weight = make() if held is None else held.get(known, (spec, dtype, keep), make)
    if learned.column is not None:
        x = x * _Tempered.apply(learned.column, temper(weights[0].shape[0]))
    elif weight.column is not None:
        x = x * weight.column
    read = read_input(reader, quantizer, x, dtype, keep)
    flat = [tensor for term in weight.terms for tensor in term]
    carrier = quantizer.carrier(x)
    y: Tensor = _LowBitProduct.apply(
        carrier, read.operand, read.scale, read.kept, spec, bias, weight.column, len(weight.terms), *flat, *trained
    )
    return y
