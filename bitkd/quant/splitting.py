"""Ternary weight splitting (BinaryBERT, arXiv:2012.15701): a ternary weight as the sum of two binary ones,
exactly.

With alpha the ternary scale, I the survivors, Z the zeroed elements and A ∪ B = Z, every group is split as
    I:  first = a * w      second = (1 - a) * w
    A:  first = w ± b      second = ∓b              (the sign is that of w; zero counts as negative)
    B:  first = ∓b         second = w ± b           (as in A, halves exchanged)
so that the signs agree on I and cancel on Z, and both halves have mean |.| = alpha / 2 for
    a = (Σ_I|w| + Σ_B|w| - Σ_A|w|) / (2 Σ_I|w|),    b = (n alpha - Σ|w|) / (2 |Z|).
The published choice A = {w > 0} works only while 0 < a < 1. In skewed groups the elements of Z are assigned to A
and B alternately, in order of size, which keeps |Σ_A - Σ_B| ≤ max_Z|w| ≤ 0.7 max_I|w| and hence a within (0.15, 0.85).
"""

from typing import Any

import torch
from torch import Tensor, nn

from bitkd.errors import InputError
from bitkd.quant.functional import SMALLEST, ternary_codes
from bitkd.quant.modules import QuantEmbedding, QuantLinear, SplitEmbedding, SplitLinear
from bitkd.quant.swap import is_split
from bitkd.quant.table import is_splittable

_MARGIN = 1e-3
"""Closer than this to 0 or 1, a * w or (1 - a) * w could lose its sign to FP32 rounding: assign Z alternately
instead."""


@torch.no_grad()
def split_ternary(w: Tensor, per_row: bool = False) -> tuple[Tensor, Tensor]:
    """Two tensors like w with first + second = w and binarize(first) + binarize(second) = ternarize(w).

    w: (rows, columns); per_row: one scale per row, as in `ternarize`. Computed in float64; in FP32 the second law
    holds bit for bit in practice, except in groups of a few elements, where rounding them shifts a mean by one ulp.
    """
    codes, scale = ternary_codes(w, per_row)
    groups = w.double().reshape(-1 if per_row else 1, w.shape[-1] if per_row else w.numel())
    zero = codes.reshape(groups.shape) == 0
    magnitude = groups.abs()

    def total(elements: Tensor) -> Tensor:
        return torch.where(elements, magnitude, 0).sum(dim=1, keepdim=True)

    survivors, zeros = total(~zero), total(zero)

    def fraction_of_survivors(in_first: Tensor) -> Tensor:
        return (survivors + zeros - 2 * total(in_first & zero)) / (2 * survivors).clamp_min(1e-300)

    in_first = groups > 0
    a = fraction_of_survivors(in_first)
    skewed = ((a < _MARGIN) | (a > 1 - _MARGIN)).squeeze(1)
    if skewed.any():
        in_first[skewed] = _alternate(magnitude[skewed], zero[skewed])
        a = fraction_of_survivors(in_first)

    alpha = scale.double().reshape(-1, 1)
    b = (groups.shape[1] * alpha - survivors - zeros) / (2 * zero.sum(dim=1, keepdim=True)).clamp_min(1)
    shift = torch.where(groups > 0, b, -b)
    first = torch.where(zero, torch.where(in_first, groups + shift, -shift), a * groups)
    second = groups - first
    return first.to(w.dtype).reshape(w.shape), second.to(w.dtype).reshape(w.shape)


def _alternate(magnitude: Tensor, zero: Tensor) -> Tensor:
    """True for every other element of Z, largest first.  magnitude, zero: (groups, elements)."""
    order = torch.where(zero, magnitude, -1).argsort(dim=1, descending=True, stable=True)
    every_other = (torch.arange(magnitude.shape[1], device=magnitude.device) % 2 == 0).expand_as(order)
    return torch.zeros_like(zero).scatter(1, order, every_other)


def split_layers(model: nn.Module) -> int:
    """Replace every ternary layer inside `model` by a SplitLinear or SplitEmbedding; returns how many.

    The pair computes exactly what the layer computed; with column scales, which it computes from the sum of its halves, up to
    rounding. Biases are halved, the input quantizer is kept. The halves' Parameters are new ones, so build the optimizer
    afterwards. Raises InputError if there is nothing to split.

    This changes layers only; `bitkd.models.prepare.split_ternary_` records it in the model's configuration too.
    """
    targets = [(parent, name, child) for parent in model.modules() for name, child in _ternary_children(parent)]
    if not targets:
        if is_split(model):
            raise InputError(
                "the model is already split: its layers are pairs of binary ones; split a ternary model once"
            )
        raise InputError(
            "the model has no ternary layer to split; prepare(model, QuantSpec(weight_bits=2)) makes a ternary one"
        )
    for parent, name, child in targets:
        setattr(parent, name, _split_module(child))
    return len(targets)


def is_ternary(module: nn.Module) -> bool:
    """Whether `module` is a layer that can be split."""
    return isinstance(module, QuantLinear | QuantEmbedding) and is_splittable(module.weight_bits, module.levels)


def _ternary_children(parent: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, child) for name, child in parent.named_children() if is_ternary(child)]


@torch.no_grad()
def _split_module(module: Any) -> SplitLinear | SplitEmbedding:
    weight, column = module.weight, None
    if module.forward_clip:  # the halves sum up to what is quantized
        weight = weight.clamp(-module.ste_clip, module.ste_clip)
    split: SplitLinear | SplitEmbedding
    if isinstance(module, QuantEmbedding):
        split = SplitEmbedding.from_float(module, ste_clip=module.ste_clip)
    else:
        if module.learned_scales:
            raise InputError(
                "a ternary layer with learned scales cannot be split: the scales of its halves are computed from their weights; "
                "use quant.learned_scales=false in the ternary stage"
            )
        *_, column = module.quantized()
        names = ("activation_bits", "signed_input", "per_row", "column_scales", "ste_clip")
        settings = {name: getattr(module, name) for name in names}
        split = SplitLinear.from_float(module, **settings)
        for half in split.halves:
            if half.bias is not None:
                half.bias.copy_(module.bias / 2)
    if column is not None:
        weight = weight / column.clamp_min(SMALLEST)
    weights = (split.first.weight, split.second.weight)
    for target, part in zip(weights, split_ternary(weight, module.per_row), strict=True):
        target.copy_(part if column is None else part * column)
    return split
