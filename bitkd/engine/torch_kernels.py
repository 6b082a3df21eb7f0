"""The parts of an encoder layer between its attention functions, by torch's own functions; see `triton_kernels`.

They are the reference of the Triton kernels, and what runs on a GPU without Triton.
"""

import torch
from torch import Tensor, nn

ROWS_AT_LEAST = 17
"""torch._int_mm wants so many rows on a GPU, and sizes that are multiples of SIZES."""

SIZES = 8


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes like x and the FP32 scale of each row.  x: (rows, width)."""
    x = x.float()
    # A number would be taken for its reciprocal on a GPU, which rounds otherwise.
    largest = torch.full((), 127.0, device=x.device)
    scales = x.abs().amax(-1, keepdim=True).clamp_min(1e-30) / largest
    return (x / scales).round_().to(torch.int8), scales[:, 0]


def add_norm(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """LayerNorm(x + y) in FP32, and its codes and scales (see `quantize`).

    x: (rows, width) in FP32; y as well, or in bf16.  weight, bias: (width,).
    """
    out = nn.functional.layer_norm(x + y, x.shape[-1:], weight, bias, eps)
    return (out, *quantize(out))


def product(
    codes: Tensor,
    scales: Tensor,
    terms: list[tuple[Tensor, Tensor]],
    bias: Tensor,
    activation: str,
    dtype: torch.dtype,
) -> Tensor:
    """activation(sum of the terms' products * scales + bias), (rows, outputs) of `dtype`.

    codes: int8 (rows, inputs), scales: (rows,); see `quantize`.  terms: one or two of int8 levels (outputs, inputs) and
    their scale (outputs,).  bias: (outputs,).  activation: "", "gelu" or "relu".
    """
    y = _whole_product(codes, terms[0][0]).mul_(terms[0][1])
    for levels, scale in terms[1:]:
        y = y.add_(_whole_product(codes, levels).mul_(scale))
    y = y.mul_(scales[:, None]).add_(bias)
    if activation == "gelu":
        y = nn.functional.gelu(y)
    elif activation == "relu":
        y = y.relu_()
    return y.to(dtype)


def _whole_product(codes: Tensor, levels: Tensor) -> Tensor:
    """codes @ levels^T, whole numbers in FP32."""
    if levels.shape[0] % SIZES or levels.shape[1] % SIZES:
        return nn.functional.linear(codes.float(), levels.float())  # exact as well: sums stay below 2^24
    rows = codes.shape[0]
    if rows < ROWS_AT_LEAST:
        codes = nn.functional.pad(codes, (0, 0, 0, ROWS_AT_LEAST - rows))
    return torch._int_mm(codes, levels.t())[:rows].float()
