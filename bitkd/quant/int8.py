"""Layers whose weights have 8 bits, for parts that no student quantizes. They are for inference only."""

from typing import Any, Self

import torch
from torch import Tensor, nn

from bitkd.errors import InputError


class InFP32(nn.Module):
    """A module whose scales stay FP32 when the model that holds it is asked for another type."""

    scale: Tensor

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        if (found := fn(self.scale[:0]).dtype) != torch.float32:
            raise InputError(
                f"a packed model computes in FP32, its weights cannot become {found}; leave out half() and the like"
            )
        return super()._apply(fn, recurse)


class Int8Weight(InFP32):
    """A weight at 8 bits, one scale per row: `codes` int8 (rows, columns), `scale` FP32 (rows,)."""

    codes: Tensor

    def _hold(self, rows: int, columns: int) -> None:
        self.register_buffer("codes", torch.zeros(rows, columns, dtype=torch.int8))
        self.register_buffer("scale", torch.zeros(rows))

    def _fill(self, weight: Tensor) -> None:
        scale = _short(weight.detach().abs().amax(-1).clamp_min(1e-30) / 127)
        self.scale.copy_(scale)
        self.codes.copy_((weight.detach() / scale[:, None]).round())

    def dequantized(self) -> Tensor:
        """FP32, (rows, columns)."""
        return self.codes.float().mul_(self.scale[:, None])


def _short(scale: Tensor) -> Tensor:
    """Scales with 17 significant bits: codes * scale, and what is divided by scale again, is then exact in FP32."""
    return (scale.view(torch.int32) & ~0x7F).view(torch.float32)


class Int8Linear(Int8Weight):
    """An nn.Linear with its weight at 8 bits; its input stays FP32."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self._hold(out_features, in_features)
        self.bias = nn.Parameter(torch.zeros(out_features), requires_grad=False) if bias else None

    @classmethod
    def from_float(cls, module: nn.Linear, fill: bool = True) -> Self:
        """A Linear at 8 bits.  fill: with its weights; if not, zeros, to be loaded into."""
        with module.weight.device:
            new = cls(module.in_features, module.out_features, module.bias is not None)
        if fill:
            new._fill(module.weight)
            if new.bias is not None:
                new.bias.copy_(module.bias.detach())
        return new.eval()

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.dequantized(), self.bias)


class Int8Embedding(Int8Weight):
    """An nn.Embedding at 8 bits."""

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.padding_idx = num_embeddings, embedding_dim, padding_idx
        self._hold(num_embeddings, embedding_dim)

    @classmethod
    def from_float(cls, module: nn.Embedding, fill: bool = True) -> Self:
        """A table at 8 bits.  fill: with its weights; if not, zeros, to be loaded into."""
        with module.weight.device:
            new = cls(module.num_embeddings, module.embedding_dim, module.padding_idx)
        if fill:
            new._fill(module.weight)
        return new.eval()

    def forward(self, input: Tensor) -> Tensor:
        rows = input.reshape(-1)
        values = self.codes.index_select(0, rows).float().mul_(self.scale.index_select(0, rows)[:, None])
        return values.view(*input.shape, self.embedding_dim)
