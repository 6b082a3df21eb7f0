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
from bitkd.quant.table import FP32

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


def _weight_terms(weights: tuple[Tensor, ...], spec: ProductSpec) -> list[tuple[Tensor, Tensor]]:
    """The quantized weight as a sum of levels * scale; a pair of weights counts as its sum.  scale: () or (rows, 1)."""
    if spec.codes is None:
        return [(weights[0], torch.ones((), device=weights[0].device))]
    return sum_terms([spec.codes(w, spec.per_row) for w in weights], spec.exact)


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
    """x @ quantized(weight)^T in FP32 or wider; the gradient is that of quantize-dequantize.

    x: its values are read only if x_codes is None; it gets the gradient of the quantized input.
    x_codes, x_scale: the quantized input (see `InputQuantizer.codes`), None for an input in FP32.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, x_codes: Tensor | None, x_scale: Tensor | None, spec: ProductSpec, *weights: Tensor
    ) -> Tensor:
        device, dtype = x.device.type, weights[0].dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        wide = torch.promote_types(dtype, torch.float32)
        with torch.autocast(device, enabled=False):
            # Codes up to 127 are exact in FP16 and bf16, but their sums would overflow FP16.
            shrink = 128 if dtype == torch.float16 and x_codes is not None else 1
            operand = (x if x_codes is None else x_codes).to(dtype)
            if shrink > 1:
                operand = operand / shrink
            terms = _weight_terms(weights, spec)
            products = (
                nn.functional.linear(operand, levels.to(dtype)).to(wide).mul_(scale.reshape(-1))
                for levels, scale in terms
            )
            y = next(products)
            for product in products:
                y = y.add_(product)
            ctx.spec, ctx.dtype, ctx.x_dtype, ctx.count = spec, dtype, x.dtype, len(weights)
            saved = operand if x_codes is None else x_codes.to(torch.int8)
            flat = [tensor for term in terms for tensor in term]
            ctx.save_for_backward(saved, x_scale, *weights, *flat)
            return y if x_scale is None else y.mul_(x_scale * shrink)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved, x_scale, *rest = ctx.saved_tensors
        weights, flat = rest[: ctx.count], rest[ctx.count :]
        needed = ctx.needs_input_grad[4:]
        grad_x = shared = None
        with torch.autocast(grad.device.type, enabled=False):
            narrow = grad.to(ctx.dtype)
            if ctx.needs_input_grad[0]:
                value = sum(levels * scale for levels, scale in zip(flat[::2], flat[1::2], strict=True))
                grad_x = (narrow @ value.to(ctx.dtype)).to(ctx.x_dtype)
            if any(needed):  # both halves of a pair see the same input and the same output
                x = saved if x_scale is None else saved * x_scale
                shared = narrow.reshape(-1, narrow.shape[-1]).t() @ x.reshape(-1, x.shape[-1]).to(ctx.dtype)
            grads = [
                clip_gradient(shared.to(w.dtype), w, ctx.spec.clip) if needs and shared is not None else None
                for w, needs in zip(weights, needed, strict=True)
            ]
        return grad_x, None, None, None, *grads


def low_bit_linear(
    x: Tensor, quantizer: InputQuantizer, spec: ProductSpec, bias: Tensor | None, *weights: Tensor
) -> Tensor:
    """x @ quantized(weight)^T + bias, in the type of autocast or of the weights.

    x: (..., columns).  weights: one of (rows, columns), or the two halves of a pair, which count as their sum.
    """
    x_codes, x_scale = quantizer.codes(x) if quantizer.bits < FP32 else (None, None)
    y: Tensor = _LowBitProduct.apply(quantizer.carrier(x), x_codes, x_scale, spec, *weights)
    if bias is not None:
        y = y + bias
    autocast = torch.is_autocast_enabled(x.device.type)
    return y.to(torch.get_autocast_dtype(x.device.type) if autocast else weights[0].dtype)
