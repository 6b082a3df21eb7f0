"""Latent weights that quantize to given codes and scales: what a student has that was unpacked, so that it can be trained."""

import torch
from torch import Tensor

from bitkd.quant.table import TERNARY

_ROUNDS = 100
"""Of dividing by the sums of columns and rows in turn. Ternary matrices need about ten."""

ATTEMPTS = 50
"""How many solutions are tried; of matrices of 128 rows and more the first one has the very scales."""

_FAR = 3
"""The outer code of four levels."""

_MEAN_CODE = 2.2
"""Rows of four levels with a larger mean |code| are laid out so that their codes are found again; from 2.25 on they would not."""


@torch.no_grad()
def latent_weights(
    halves: list[tuple[Tensor, Tensor]], column: Tensor | None, bits: int, levels: int, learned: bool, attempt: int = 0
) -> list[Tensor]:
    """FP32 weights (rows, columns), one for each of `halves`, with these codes and scales.

    halves: codes (rows, columns) and scale, (rows, 1) or (1, 1), of a weight or of a pair's halves.
    column: the scale of the columns, (columns,); None if there is none.
    bits, levels, learned: of the weights (see `bitkd.quant.spec.QuantSpec`). Learned scales are not computed from the weights, so
        any weights of these codes will do.
    attempt: with scales of columns, which of many solutions; rounding makes a few scales of small matrices other ones.
    """
    pairs = [(codes.double(), scale.double()) for codes, scale in halves]
    if learned:
        plain = [codes * scale for codes, scale in pairs]
        return [(weight if column is None else weight * column).float() for weight in plain]
    if column is not None:
        factor = _even_columns(pairs, column > 0, attempt) * column
        return [_in_fp32(codes * scale * factor) for codes, scale in pairs]
    if bits > TERNARY:
        return [_at_largest(codes.float(), scale.float(), 2 ** (bits - 1) - 1) for codes, scale in halves]
    if levels == 1 + _FAR:
        return [_in_fp32(_far_apart(codes, scale)) for codes, scale in pairs]
    return [(codes * scale).float() for codes, scale in pairs]


def _even_columns(pairs: list[tuple[Tensor, Tensor]], has_scale: Tensor, attempt: int) -> Tensor:
    """Positive factors (rows, columns) by which all columns have the same mean magnitude, as those of weight / column scale have,
    while each row keeps its scale.

    has_scale: (columns,), False where a column is all zeros.  attempt: another number, other factors; 0: of rows and columns.
    """
    square = pairs[0][0].square()
    factor = torch.ones_like(square)
    if attempt:
        noise = torch.rand(square.shape, generator=torch.Generator().manual_seed(attempt), dtype=torch.float64)
        factor += 1e-3 * noise.to(square.device)
    factor *= has_scale
    size = sum(codes * scale for codes, scale in pairs).abs()  # type: ignore[union-attr]
    count = square.sum(1, keepdim=True)
    wanted = (size * has_scale).sum() / has_scale.sum().clamp_min(1)
    for _ in range(_ROUNDS):
        factor *= (wanted / (size * factor).sum(0).clamp_min(1e-300)).clamp_max(1e30)
        left = (square * factor).sum(1, keepdim=True)
        change = torch.where(left > 0, count / left.clamp_min(1e-300), 1.0)
        factor *= change
        if torch.allclose(change, torch.ones_like(change), rtol=0, atol=1e-14):
            break
    return factor


def _in_fp32(weight: Tensor) -> Tensor:
    """FP32 numbers, the neighbours below and above in such turns that the errors of a row cancel: many equal numbers would be
    rounded alike, and their mean with them."""
    size = weight.abs()
    below = size.float()
    below = torch.where(below > size, torch.nextafter(below, torch.zeros_like(below)), below)
    above = torch.nextafter(below, torch.full_like(below, torch.inf))
    part = (size - below) / (above.double() - below)
    turns = (part.cumsum(-1) + 0.5).floor()
    up = turns > torch.nn.functional.pad(turns[:, :-1], (1, 0))
    return torch.where(up, above, below).copysign(weight)


def _far_apart(codes: Tensor, scale: Tensor) -> Tensor:
    """codes * scale; in groups with very many outer codes the inner ones are zeros, and the outer ones larger by as much as keeps
    the scale."""
    weight = codes * scale
    dim = -1 if scale.numel() > 1 else None
    mean = codes.abs().mean(dim=dim, keepdim=True)
    far = codes.abs() == _FAR
    outer = far.sum(dim=dim, keepdim=True).clamp_min(1)
    inner = (~far).sum(dim=dim, keepdim=True)
    larger = codes.sign() * far * scale * (inner + _FAR**2 * outer) / (_FAR * outer)
    # Zero counts as positive; the smallest numbers keep the signs.
    larger = torch.where(far, larger, codes.sign() * scale * 1e-12)
    return torch.where(mean > _MEAN_CODE, larger, weight)


def _at_largest(codes: Tensor, scale: Tensor, largest: int) -> Tensor:
    """codes * scale in FP32, the outer ones such that they over `largest` are the very scale."""
    tops = largest * scale
    for step in (torch.nextafter(tops, 0 * tops), torch.nextafter(tops, 2 * tops)):
        tops = torch.where(tops / largest != scale, torch.where(step / largest == scale, step, tops), tops)
    return torch.where(codes.abs() == largest, codes.sign() * tops, codes * scale)


def same_scales(wanted: list[Tensor | None], found: list[Tensor | None]) -> bool:
    """Whether a layer's weights have the codes and scales that they were made for.

    wanted, found: codes and scales in the same order; None for what a layer has not.
    """
    return all(
        one is None or other is None or torch.equal(one.float(), other.float().reshape(one.shape))
        for one, other in zip(wanted, found, strict=True)
    )
