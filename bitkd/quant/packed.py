"""Layers whose weights are packed: 1 or 2 bits in memory as on disk, of words up to 8. They are for inference only.

Their products are computed on whole numbers and scaled in the order of `bitkd.quant.product`, so a packed model gives the
very logits of the simulated one, bit for bit. This is also what every faster execution is compared with.

A product unpacks the weight and multiplies it in FP32. A CPU that multiplies integers (VNNI, AMX) does so several times
faster, so there the codes are multiplied in int8, and kept so after the first call: a quarter of an FP32 weight.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

import torch
from torch import Tensor, nn

from bitkd.quant.inputs import InputQuantizer
from bitkd.quant.int8 import InFP32, Int8Embedding, Int8Linear
from bitkd.quant.modules import QuantEmbedding, QuantLinear, SplitEmbedding, SplitLinear
from bitkd.quant.packing import BITS, TWO_BITS, Packing, pack_codes, packing_of, unpack_codes
from bitkd.quant.product import sum_terms
from bitkd.quant.reuse import version_of
from bitkd.quant.table import FP32

HALVES = ("", "second_")
"""Prefixes of the buffers of a layer's weight, and of the second half of a pair."""


class PackedWeight(InFP32):
    """Buffers of a weight of `rows` x `columns` codes, or of the two halves of a pair.

    packed: uint8 (rows, bytes), see `bitkd.quant.packing`.  scale: FP32, (rows,) or (1,) for all rows.
    second_packed, second_scale: of a pair's second half.
    column_scale: FP32, (columns,), by which the input is multiplied; None if there is none.
    """

    packed: Tensor
    column_scale: Tensor | None

    def __init__(
        self, rows: int, columns: int, packing: Packing, per_row: bool, split: bool, column_scales: bool = False
    ) -> None:
        super().__init__()
        self.columns = columns
        self.packing = packing
        self.per_row = per_row
        self.split = split
        for half in HALVES[: 1 + split]:
            self.register_buffer(f"{half}packed", torch.zeros(rows, packing.columns(columns), dtype=torch.uint8))
            self.register_buffer(f"{half}scale", torch.zeros(rows if per_row else 1))
        self.register_buffer("column_scale", torch.zeros(columns) if column_scales else None)

    def halves(self) -> list[tuple[Tensor, Tensor]]:
        """The packed codes and the scale of the weight, or of both halves of a pair."""
        return [(getattr(self, f"{half}packed"), getattr(self, f"{half}scale")) for half in HALVES[: 1 + self.split]]

    def quantized(self) -> tuple[list[tuple[Tensor, Tensor]], Tensor | None]:
        """The codes (rows, columns) in int8 and the scale, (rows, 1) or (1, 1), of the weight or of both halves, and the scale of
        the columns, or None."""
        halves = [(unpack_codes(packed, self.packing, self.columns), scale[:, None]) for packed, scale in self.halves()]
        return halves, self.column_scale

    def _fill(self, halves: list[tuple[Tensor, Tensor]], column: Tensor | None, of_zeros: Tensor) -> None:
        """halves: codes and scale of each.  of_zeros: the code of a weight that is zero."""
        for half, (codes, scale) in zip(HALVES, halves, strict=False):
            # The signs of numbers whose mean is too small for FP32 say nothing.
            nothing = scale.reshape(-1, 1) == 0
            if column is not None:
                nothing = nothing | (column == 0)
            if nothing.any():
                codes = torch.where(nothing, of_zeros.to(codes.dtype), codes)
            getattr(self, f"{half}packed").copy_(pack_codes(codes, self.packing))
            getattr(self, f"{half}scale").copy_(scale.reshape(-1))
        if self.column_scale is not None and column is not None:
            self.column_scale.copy_(column)


@dataclass(frozen=True)
class _Kept:
    """A weight's codes in int8, and the tensors that they were read from with their versions."""

    terms: list[tuple[Tensor, Tensor]]
    tensors: list[tuple[Tensor, int]]

    def is_of(self, halves: list[tuple[Tensor, Tensor]]) -> bool:
        """Whether these are the tensors, unchanged."""
        present = [tensor for half in halves for tensor in half]
        return all(
            tensor is held and version_of(tensor) == version
            for tensor, (held, version) in zip(present, self.tensors, strict=True)
        )


class PackedLinear(PackedWeight):
    """The packed form of a QuantLinear, or of a SplitLinear in one layer. The bias stays FP32."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        packing: Packing = BITS,
        per_row: bool = False,
        split: bool = False,
        column_scales: bool = False,
        input_quantizer: InputQuantizer,
    ) -> None:
        super().__init__(out_features, in_features, packing, per_row, split, column_scales)
        self.in_features = in_features
        self.out_features = out_features
        self.bias = nn.Parameter(torch.zeros(out_features), requires_grad=False) if bias else None
        self.input_quantizer = input_quantizer
        self._kept: _Kept | None = None

    @classmethod
    def from_quantized(cls, module: QuantLinear | SplitLinear, ternary: Packing = TWO_BITS, fill: bool = True) -> Self:
        """The packed form of a layer.  fill: with its codes; if not, zeros, to be loaded into."""
        first = module.first if isinstance(module, SplitLinear) else module
        with first.weight.device:
            new = cls(
                module.in_features,
                module.out_features,
                first.bias is not None,
                packing=packing_of(module.weight_bits, first.levels, ternary),
                per_row=module.per_row,
                split=isinstance(module, SplitLinear),
                column_scales=module.column_scales,
                input_quantizer=module.input_quantizer,
            )
        if fill:
            new._fill(*quantized_weight(module), _code_of_zero(first))
            if new.bias is not None:
                biases = [half.bias.detach() for half in _parts(module)]
                new.bias.copy_(biases[0] if len(biases) == 1 else biases[0] + biases[1])
        return new.eval()

    @property
    def activation_bits(self) -> int:
        """Bits of the input."""
        return self.input_quantizer.bits

    def terms(self, dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
        """The weight as a sum of levels * scale (see `bitkd.quant.product.sum_terms`).

        dtype: of the levels. They are whole numbers, unless a pair's input is FP32.
        """
        unpacked = [
            (unpack_codes(packed, self.packing, self.in_features, dtype), scale) for packed, scale in self.halves()
        ]
        return sum_terms(unpacked, exact=self.activation_bits < FP32)

    def forward(self, input: Tensor) -> Tensor:
        """(..., out_features) in FP32, also under autocast.  input: (..., in_features).

        Raises RuntimeError if the input needs a gradient: packed weights have none to give.
        """
        if input.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                "packed layers are for inference only and give no gradient: call the model under torch.inference_mode(), or "
                "train the artifact that it was exported from"
            )
        with torch.autocast(input.device.type, enabled=False):
            if self.column_scale is not None:
                input = input * self.column_scale
            if self.activation_bits == FP32:
                codes, x_scale = input.float(), None
            else:
                codes, x_scale = self.input_quantizer.codes(input)
            if x_scale is not None and input.device.type == "cpu" and multiplies_integers():
                y = self._multiply_integers(codes)
            else:
                y = _sum(nn.functional.linear(codes, levels).mul_(scale) for levels, scale in self.terms())
            y = y if x_scale is None else y.mul_(x_scale)
            return y if self.bias is None else y.add_(self.bias)

    def _multiply_integers(self, codes: Tensor) -> Tensor:
        """The products with the weight's terms, scaled and summed.  codes: (..., in_features), whole numbers."""
        kept = self._kept  # another thread may replace it
        if kept is None or not kept.is_of(self.halves()):
            tensors = [
                (tensor, version_of(tensor)) for half in self.halves() for tensor in half
            ]  # before they are read
            terms = [(levels.contiguous(), scale) for levels, scale in self.terms(torch.int8)]
            self._kept = kept = _Kept(terms, tensors)
        x = codes.reshape(-1, self.in_features).to(torch.int8)
        y = _sum(torch._int_mm(x, levels.t()).float().mul_(scale) for levels, scale in kept.terms)
        return y.view(*codes.shape[:-1], self.out_features)

    def _forget(self) -> None:
        self._kept = None

    def _load_from_state_dict(self, *args: Any, **settings: Any) -> None:
        self._forget()
        super()._load_from_state_dict(*args, **settings)

    def _apply(self, *args: Any, **settings: Any) -> Self:
        self._forget()
        return super()._apply(*args, **settings)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": None}


@cache
def multiplies_integers() -> bool:
    """Whether torch multiplies int8 matrices faster than FP32 ones on this CPU; on others it uses a slow loop."""
    has_vnni = getattr(torch.cpu, "_is_vnni_supported", lambda: False)
    return torch.backends.mkldnn.is_available() and bool(has_vnni())


def _sum(products: Iterator[Tensor]) -> Tensor:
    total = next(products)
    for product in products:
        total = total.add_(product)
    return total


class PackedEmbedding(PackedWeight):
    """The packed form of a QuantEmbedding, or of a SplitEmbedding in one table; one scale per row."""

    def __init__(
        self, num_embeddings: int, embedding_dim: int, padding_idx: int | None, *, packing: Packing, split: bool
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, packing, per_row=True, split=split)
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = padding_idx

    @classmethod
    def from_quantized(cls, module: Any, ternary: Packing = TWO_BITS, fill: bool = True) -> Self:
        """The packed form of a table.  fill: with its codes; if not, zeros, to be loaded into."""
        split = isinstance(module, SplitEmbedding)
        halves: list[QuantEmbedding] = [module.first, module.second] if split else [module]
        packing = packing_of(module.weight_bits, halves[0].levels, ternary)
        with halves[0].weight.device:
            new = cls(module.num_embeddings, module.embedding_dim, module.padding_idx, packing=packing, split=split)
        if fill:
            new._fill(*quantized_weight(module), _code_of_zero(halves[0]))
        return new.eval()

    def forward(self, input: Tensor) -> Tensor:
        """(..., embedding_dim) in FP32.  input: (...) row numbers."""
        rows = input.reshape(-1)
        total = _sum(
            unpack_codes(packed.index_select(0, rows), self.packing, self.embedding_dim, torch.float32).mul_(
                scale.index_select(0, rows)[:, None]
            )
            for packed, scale in self.halves()
        )
        return total.view(*input.shape, self.embedding_dim)


def _parts(module: Any) -> list[Any]:
    """A layer, or the halves of a pair."""
    return [module.first, module.second] if isinstance(module, SplitLinear | SplitEmbedding) else [module]


def _code_of_zero(part: Any) -> Tensor:
    codes: Tensor = part.weight_codes(torch.zeros(1, 1, device=part.weight.device), True)[0]
    return codes


def quantized_weight(module: Any) -> tuple[list[tuple[Tensor, Tensor]], Tensor | None]:
    """The codes and the scale of a layer's weight or of both halves, and the scale of the columns, or None."""
    if isinstance(module, SplitLinear):
        return module.quantized()
    if isinstance(module, QuantLinear):
        codes, scale, column = module.quantized()
        return [(codes, scale)], column
    return [part.weight_codes(part.weight.detach(), part.per_row) for part in _parts(module)], None


def pack_layers(
    model: nn.Module, *, ternary: Packing = TWO_BITS, int8: list[str] | None = None, fill: bool = True
) -> None:
    """Replace the low-bit layers of a quantized model by packed ones, in place. Its other parameters need no gradient any more.

    ternary: the packing of ternary weights.  int8: names of other Linears and tables to keep at 8 bits.
    fill: with their weights; if not, zeros, to be loaded into.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, QuantLinear | SplitLinear) and child.weight_bits < FP32:
                setattr(parent, name, PackedLinear.from_quantized(child, ternary, fill))
            elif isinstance(child, QuantEmbedding | SplitEmbedding) and child.weight_bits < FP32:
                setattr(parent, name, PackedEmbedding.from_quantized(child, ternary, fill))
    for path in int8 or []:
        parent_path, _, name = path.rpartition(".")
        holder = model.get_submodule(parent_path)
        child = getattr(holder, name)
        kind: Any = Int8Embedding if isinstance(child, nn.Embedding) else Int8Linear
        setattr(holder, name, kind.from_float(child, fill))
    model.requires_grad_(False)
