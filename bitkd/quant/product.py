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

from bitkd.quant.functional import clip_gradient
from bitkd.quant.inputs import InputQuantizer
from bitkd.quant.reuse import HeldTerms, WeightTerm, read_input, shrink_of

Codes = Callable[..., tuple[Tensor, Tensor]]


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


@torch.no_grad()
def _weight_terms(weights: tuple[Tensor, ...], spec: ProductSpec, dtype: torch.dtype, keep: bool) -> list[WeightTerm]:
    """The quantized weight as a sum of levels * scale; a pair of weights counts as its sum.

    dtype: of the levels that are multiplied.  keep: whether a gradient will be asked for.
    """
    with torch.autocast(weights[0].device.type, enabled=False):
        if spec.codes is None:
            terms = [(weights[0].detach(), torch.ones((), device=weights[0].device))]
        else:
            terms = sum_terms([spec.codes(w, spec.per_row) for w in weights], spec.exact)
        whole = spec.codes is not None and spec.fits_int8 and len(weights) == 1
        return [
            WeightTerm(levels.to(dtype), scale, levels.to(torch.int8) if keep and whole else None)
            for levels, scale in terms
        ]


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
    tensors: `terms` times the levels, scale and kept levels of a term (see `WeightTerm`), then the weights.
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
        terms: int,
        *tensors: Any,
    ) -> Tensor:
        flat, weights = tensors[: 3 * terms], tensors[3 * terms :]
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
        ctx.save_for_backward(x_kept, x_scale, *flat[1::3], *kept, *weights)
        return y.to(operand.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_kept, x_scale, *rest = ctx.saved_tensors
        scales, levels, weights = rest[: ctx.terms], rest[ctx.terms : 2 * ctx.terms], rest[2 * ctx.terms :]
        needed = ctx.needs_input_grad[7 + 3 * ctx.terms :]
        grad_x = grad_bias = shared = None
        with torch.autocast(grad.device.type, enabled=False):
            narrow = grad.to(ctx.dtype)
            if ctx.needs_input_grad[0]:
                value = _dequantized(levels[0], scales[0])
                for level, scale in zip(levels[1:], scales[1:], strict=True):
                    value = value + _dequantized(level, scale)
                grad_x = (narrow @ value.to(ctx.dtype)).to(ctx.x_dtype)
            if any(needed):  # both halves of a pair see the same input and the same output
                x = x_kept if x_scale is None else _dequantized(x_kept, x_scale)
                shared = narrow.reshape(-1, narrow.shape[-1]).t() @ x.reshape(-1, x.shape[-1]).to(ctx.dtype)
            if ctx.needs_input_grad[5]:
                grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0, dtype=ctx.bias_dtype)
            grads = [
                clip_gradient(shared.to(w.dtype), w, ctx.spec.clip) if needs and shared is not None else None
                for w, needs in zip(weights, needed, strict=True)
            ]
        return grad_x, None, None, None, None, grad_bias, None, *[None] * (3 * ctx.terms), *grads


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
    read = read_input(reader, quantizer, x, dtype, keep)

    def make() -> list[WeightTerm]:
        return _weight_terms(weights, spec, dtype, keep)

    terms = make() if held is None else held.get(weights, (spec, dtype, keep), make)
    flat = [tensor for term in terms for tensor in term]
    carrier = quantizer.carrier(x)
    y: Tensor = _LowBitProduct.apply(
        carrier, read.operand, read.scale, read.kept, spec, bias, len(terms), *flat, *weights
    )
    return y
