"""Pairs of binary layers: what ternary layers become by weight splitting (BinaryBERT, arXiv:2012.15701)."""

from typing import Any, Self

import torch
from torch import Tensor, nn

from bitkd.quant.inputs import InputQuantizer, make_input_quantizer
from bitkd.quant.modules import COLUMN_SCALE, QuantEmbedding, QuantLinear, held_by, quantizer_for, without_values
from bitkd.quant.product import LearnedScales, ProductSpec, codes_and_scales, low_bit_linear
from bitkd.quant.reuse import HoldsCodes
from bitkd.quant.table import FP32, HALF_BITS


def _pop_quantizer(module: Any, settings: dict[str, Any]) -> InputQuantizer:
    """The input quantizer of a pair with these settings, whose halves have none."""
    bits, signed = settings.pop("activation_bits", FP32), settings.pop("signed_input", True)
    return quantizer_for(module, bits, signed, settings.get("column_scales", False))


def _blank(parameter: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.zeros_like(parameter), requires_grad=parameter.requires_grad)


class SplitLinear(HoldsCodes, nn.Module):
    """Two binary QuantLinears on the same input, outputs summed: what a ternary layer becomes by weight
    splitting (BinaryBERT, arXiv:2012.15701).

    In eval mode y = x_scale * (m * (P1 + P2) + d * (P1 - P2)) + biases, where P1 and P2 are the products with
    the two code matrices and m, d the halves of the scales' sum and difference. Training needs a single
    product. Both halves read one quantized input, so the quantizer belongs to the pair, and so does the scale of columns.

    input_quantizer: None takes that of `first`.
    column_scales: one scale per column, that of the sum of the halves' weights. With halves whose scales are learned it is the
        Parameter `column_scale`, (columns,).
    """

    column_scale: nn.Parameter | None

    def __init__(
        self,
        first: QuantLinear,
        second: QuantLinear,
        input_quantizer: InputQuantizer | None = None,
        column_scales: bool = False,
    ) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.column_scales = column_scales
        self.input_quantizer = input_quantizer or first.input_quantizer
        for half in (first, second):  # one quantizer, registered once
            half.input_quantizer = make_input_quantizer(FP32)
        self.register_parameter(COLUMN_SCALE, None)
        self.train(first.training)

    @classmethod
    def from_float(cls, module: nn.Linear, **settings: Any) -> Self:
        """A pair shaped like `module`, all zeros: to be filled by `load_state_dict`.

        settings: activation_bits, signed_input, per_row, column_scales, learned_scales, ste_clip. The input quantizer of a
        QuantLinear is kept, unless one of another width or for other inputs is asked for.
        """
        quantizer, columns = _pop_quantizer(module, settings), settings.pop("column_scales", False)
        halves = []
        for _ in range(2):
            half = QuantLinear.from_float(module, weight_bits=HALF_BITS, **settings)
            half.weight = _blank(module.weight)
            half.bias = None if module.bias is None else _blank(module.bias)
            halves.append(half)
        pair = cls(halves[0], halves[1], quantizer, columns)
        if pair.learned_scales:
            pair.start_scales()
        return pair

    @classmethod
    def from_pair(cls, module: "SplitLinear", **settings: Any) -> Self:
        """A pair that shares the weights of `module`, quantized otherwise; settings as in `from_float`."""
        quantizer, columns = _pop_quantizer(module, settings), settings.pop("column_scales", False)
        halves = [QuantLinear.from_float(half, weight_bits=HALF_BITS, **settings) for half in module.halves]
        pair = cls(halves[0], halves[1], quantizer, columns)
        if pair.learned_scales:
            if module.learned_scales and (module.per_row, module.column_scales) == (pair.per_row, columns):
                pair.column_scale = module.column_scale
            else:
                pair.start_scales()
        return pair

    @property
    def halves(self) -> tuple[QuantLinear, QuantLinear]:
        """Both layers."""
        return self.first, self.second

    @property
    def in_features(self) -> int:
        """Width of the input."""
        return self.first.in_features

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return self.first.out_features

    @property
    def weight_bits(self) -> int:
        """Bits of each half."""
        return self.first.weight_bits

    @property
    def activation_bits(self) -> int:
        """Bits of the input that both halves read."""
        return self.input_quantizer.bits

    @property
    def signed_input(self) -> bool:
        """Whether the input's quantizer takes negative values."""
        return self.input_quantizer.signed

    @property
    def per_row(self) -> bool:
        """Whether each half has one scale per row."""
        return self.first.per_row

    @property
    def learned_scales(self) -> bool:
        """Whether the scales are Parameters."""
        return self.first.learned_scales

    @property
    def product(self) -> ProductSpec:
        """How both weights are quantized."""
        exact = not self.training and self.activation_bits < FP32
        return self.first.product._replace(exact=exact, fits_int8=False, columns=self.column_scales)

    @property
    def learned(self) -> LearnedScales:
        """The learned scales of both halves, and of the columns."""
        scales = [half.weight_scale for half in self.halves if half.weight_scale is not None]
        return LearnedScales(tuple(scales), self.column_scale)

    def start_scales(self) -> None:
        """Make new Parameters of the scales, with the values that they would be computed as."""
        if self.first.weight.is_meta:
            scale, column = without_values(self)
            scales = [scale, scale]
        else:
            found, column = self._codes(self.product._replace(codes_at=None), LearnedScales())
            scales = [scale for _, scale in found]
        for half, scale in zip(self.halves, scales, strict=True):
            half.weight_scale = nn.Parameter(scale)
        self.column_scale = None if column is None else nn.Parameter(column)

    def quantized(self) -> tuple[list[tuple[Tensor, Tensor]], Tensor | None]:
        """The codes and the scale of each half, and the scale of the columns that both share, or None."""
        return self._codes(self.product, self.learned)

    def _codes(self, spec: ProductSpec, learned: LearnedScales) -> tuple[list[tuple[Tensor, Tensor]], Tensor | None]:
        return codes_and_scales((self.first.weight, self.second.weight), spec, learned)

    @torch.no_grad()
    def dequantized(self) -> Tensor:
        """The sum of both quantized weights, (rows, columns)."""
        ((first, scale), (second, other)), column = self.quantized()
        total = first * scale + second * other
        return total if column is None else total * column

    def forward(self, input: Tensor) -> Tensor:
        first, second = self.halves
        bias = None if first.bias is None else first.bias + second.bias
        return low_bit_linear(
            self,
            input,
            self.input_quantizer,
            self.product,
            bias,
            first.weight,
            second.weight,
            held=held_by(self),
            learned=self.learned,
        )


class SplitEmbedding(nn.Module):
    """Two binary QuantEmbeddings of the same ids, rows summed (see SplitLinear)."""

    def __init__(self, first: QuantEmbedding, second: QuantEmbedding) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.train(first.training)

    @classmethod
    def from_float(cls, module: nn.Embedding, **settings: Any) -> Self:
        """A pair shaped like `module`, all zeros: to be filled by `load_state_dict`."""
        halves = []
        for _ in range(2):
            half = QuantEmbedding.from_float(module, weight_bits=HALF_BITS, **settings)
            half.weight = _blank(module.weight)
            halves.append(half)
        return cls(*halves)

    @property
    def num_embeddings(self) -> int:
        """Number of rows."""
        return self.first.num_embeddings

    @property
    def embedding_dim(self) -> int:
        """Width of a row."""
        return self.first.embedding_dim

    @property
    def padding_idx(self) -> int | None:
        """The row of padding, which is not trained."""
        return self.first.padding_idx

    @property
    def weight_bits(self) -> int:
        """Bits of each half."""
        return self.first.weight_bits

    def dequantized(self) -> Tensor:
        """The sum of both quantized tables."""
        return self.first.dequantized() + self.second.dequantized()

    def forward(self, input: Tensor) -> Tensor:
        return self.first(input) + self.second(input)
