"""The parts of an encoder layer between its attention functions, as Triton kernels.

They round as the simulation does on a CPU: true divisions, products scaled and biased in its order without fused
multiply-adds. So codes, scales and products are those of the simulation, bit for bit; norms and activation functions may
differ in the last bit.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

LARGEST_CODE = tl.constexpr(127.0)
SMALLEST = tl.constexpr(1e-30)
TO_WHOLE = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding it rounds to whole numbers, halves to even ones, as torch does


@triton.jit
def _store_codes(value, inside, codes, scales, row, columns, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    value = tl.where(inside, value, 0.0)
    scale = tl.div_rn(tl.maximum(tl.max(tl.abs(value), 0), SMALLEST), LARGEST_CODE)
    # A maximum passes NaN over; this makes the scale of such a token NaN, and so its whole row of products.
    scale += tl.sum(value * 0.0, 0)
    whole = tl.div_rn(value, scale) + TO_WHOLE - TO_WHOLE
    tl.store(codes + row * WIDTH + columns, whole.to(tl.int8), mask=inside)
    tl.store(scales + row, scale)


@triton.jit
def _quantize(x, codes, scales, WIDTH: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    value = tl.load(x + row * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    _store_codes(value, inside, codes, scales, row, columns, WIDTH)


@triton.jit
def _add_norm(x, y, weight, bias, out, codes, scales, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    value = tl.load(x + row * WIDTH + columns, mask=inside, other=0.0)
    value += tl.load(y + row * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    centred = tl.where(inside, value - tl.sum(value, 0) / WIDTH, 0.0)
    normed = centred / tl.sqrt_rn(tl.sum(centred * centred, 0) / WIDTH + eps)
    normed = normed * tl.load(weight + columns, mask=inside, other=0.0) + tl.load(
        bias + columns, mask=inside, other=0.0
    )
    tl.store(out + row * WIDTH + columns, normed, mask=inside)
    _store_codes(normed, inside, codes, scales, row, columns, WIDTH)


@triton.jit
def _product(  # type: ignore[no-untyped-def]
    codes,
    scales,
    levels,
    level_scales,
    second,
    second_scales,
    bias,
    out,
    rows,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    PAIR: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    # Programs that run at the same time share rows and columns, so that they find them in the cache.
    GROUP: tl.constexpr = 8
    across: tl.constexpr = (OUTPUTS + COLUMNS - 1) // COLUMNS
    index = tl.program_id(0)
    first = index // (GROUP * across) * GROUP
    size = tl.minimum(tl.cdiv(rows, ROWS) - first, GROUP)
    row = (first + index % (GROUP * across) % size) * ROWS + tl.arange(0, ROWS)
    column = index % (GROUP * across) // size * COLUMNS + tl.arange(0, COLUMNS)
    k = tl.arange(0, DEPTH)
    in_rows, in_columns = row < rows, column < OUTPUTS
    a = codes + row.to(tl.int64)[:, None] * INPUTS + k[None, :]
    w = levels + column[None, :] * INPUTS + k[:, None]
    w2 = second + column[None, :] * INPUTS + k[:, None]
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.int32)
    total2 = tl.zeros((ROWS, COLUMNS), dtype=tl.int32)
    for start in range(0, INPUTS, DEPTH):
        in_a, in_w = in_rows[:, None], in_columns[None, :]
        if INPUTS % DEPTH != 0:
            inside = k + start < INPUTS
            in_a, in_w = in_a & inside[None, :], in_w & inside[:, None]
        x = tl.load(a + start, mask=in_a, other=0)
        total = tl.dot(x, tl.load(w + start, mask=in_w, other=0), total, out_dtype=tl.int32)
        if PAIR:
            total2 = tl.dot(x, tl.load(w2 + start, mask=in_w, other=0), total2, out_dtype=tl.int32)
    y = total.to(tl.float32) * tl.load(level_scales + column, mask=in_columns, other=0.0)[None, :]
    if PAIR:
        y += total2.to(tl.float32) * tl.load(second_scales + column, mask=in_columns, other=0.0)[None, :]
    y *= tl.load(scales + row, mask=in_rows, other=0.0)[:, None]
    y += tl.load(bias + column, mask=in_columns, other=0.0)[None, :]
    if ACTIVATION == "gelu":
        y = y * 0.5 * (1.0 + tl.erf(y * 0.7071067811865476))
    elif ACTIVATION == "relu":
        y = tl.where(y < 0.0, 0.0, y)  # keeps NaN
    target = out + row.to(tl.int64)[:, None] * OUTPUTS + column[None, :]
    tl.store(target, y, mask=in_rows[:, None] & in_columns[None, :])


SMALL_MEMORY = 96 * 1024
"""Bytes of shared memory that every GPU of compute capability 8 or more has."""


@dataclass(frozen=True)
class Tile:
    """The part of a product that one program computes, and how."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


def tile_of(rows: int) -> Tile:
    """For so many tokens: small tiles where there are few of them, so that all of the GPU has work."""
    if rows <= 64:
        return Tile(32, 32, 128, 4, 4)
    if rows <= 1024:
        return Tile(64, 128, 128, 4, 4)
    return Tile(128, 128, 128, 8, 3)


def _stages(tile: Tile, terms: int, device: torch.device) -> int:
    """Tiles that are loaded ahead: as many as the shared memory of a multiprocessor holds."""
    if device.type != "cuda":
        return tile.stages
    memory = getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", SMALL_MEMORY)
    return max(1, min(tile.stages, memory // ((tile.rows + terms * tile.columns) * tile.depth)))


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes like x and the FP32 scale of each row.  x: (rows, width), contiguous."""
    rows, width = x.shape
    codes, scales = _codes_like(x)
    _quantize[(rows,)](x, codes, scales, width, triton.next_power_of_2(width), num_warps=_warps(width))
    return codes, scales


def add_norm(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """LayerNorm(x + y) in FP32, and its codes and scales (see `quantize`).

    x: (rows, width) in FP32, contiguous; y as well, or in bf16.  weight, bias: (width,).
    """
    rows, width = x.shape
    out = torch.empty_like(x)
    codes, scales = _codes_like(x)
    block = triton.next_power_of_2(width)
    _add_norm[(rows,)](x, y, weight, bias, out, codes, scales, eps, width, block, num_warps=_warps(width))
    return out, codes, scales


def product(
    codes: Tensor,
    scales: Tensor,
    terms: list[tuple[Tensor, Tensor]],
    bias: Tensor,
    activation: str,
    dtype: torch.dtype,
    tile: Tile | None = None,
) -> Tensor:
    """activation(sum of the terms' products * scales + bias), (rows, outputs) of `dtype`.

    codes: int8 (rows, inputs), scales: (rows,); see `quantize`.  terms: one or two of int8 levels (outputs, inputs) and
    their scale (outputs,).  bias: (outputs,).  activation: "", "gelu" or "relu".  tile: another than `tile_of` chooses.
    """
    rows, inputs = codes.shape
    (levels, level_scales), (second, second_scales) = terms[0], terms[-1]
    outputs = levels.shape[0]
    out = torch.empty(rows, outputs, dtype=dtype, device=codes.device)
    tile = tile or tile_of(rows)
    programs = triton.cdiv(rows, tile.rows) * triton.cdiv(outputs, tile.columns)
    _product[(programs,)](
        codes,
        scales,
        levels,
        level_scales,
        second,
        second_scales,
        bias,
        out,
        rows,
        outputs,
        inputs,
        len(terms) == 2,
        activation,
        tile.rows,
        tile.columns,
        tile.depth,
        num_warps=tile.warps,
        num_stages=_stages(tile, len(terms), codes.device),
        enable_fp_fusion=False,
    )
    return out


def _codes_like(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, dtype=torch.int8), torch.empty(x.shape[0], device=x.device)


def _warps(width: int) -> int:
    return 4 if width <= 1024 else 8
