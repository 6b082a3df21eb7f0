"""Low-bit stand-ins for nn.Linear and nn.Embedding, with the same parameter names."""

from typing import Any, Self

import torch
from torch import Tensor, nn

from bitkd.quant.functional import ClippedCodes, quantize_weight
from bitkd.quant.inputs import WIDEST, InputQuantizer, make_input_quantizer
from bitkd.quant.product import Codes, LearnedScales, ProductSpec, codes_and_scales, low_bit_linear
from bitkd.quant.reuse import HeldTerms, HoldsCodes
from bitkd.quant.table import FP32, HALF_BITS, LEVELS, WeightQuantizer, weight_quantizer

COLUMN_SCALE = "column_scale"
SCALE_NAMES = ("weight_scale", COLUMN_SCALE)
"""Names of the Parameters of learned scales; None where they are computed."""


def _weight_codes(row: WeightQuantizer | None, clip: float | None) -> Codes | None:
    if row is None:
        return None
    return row.resolve() if clip is None else ClippedCodes(row.resolve(), clip)


def _held_by(layer: HoldsCodes) -> HeldTerms | None:
    """Where the layer keeps its weights' codes; None for a compiled layer, which would be compiled again at each change."""
    return None if torch.compiler.is_compiling() else layer.held


def quantizer_for(module: Any, bits: int, signed: bool = True) -> InputQuantizer:
    """The input quantizer of `module`, with all that it has learned, if it is of `bits` and for such inputs; otherwise a new
    one.

    signed: whether the input has negative values.
    """
    old, new = getattr(module, "input_quantizer", None), make_input_quantizer(bits, module.in_features, signed)
    if isinstance(old, InputQuantizer) and (old.bits, old.signed) == (new.bits, new.signed):
        return old
    return new.to(next(module.parameters()).device)


def _pop_quantizer(module: Any, settings: dict[str, Any]) -> InputQuantizer:
    """The input quantizer of a pair with these settings, whose halves have none."""
    return quantizer_for(module, settings.pop("activation_bits", FP32), settings.pop("signed_input", True))


def _without_values(layer: Any) -> tuple[Tensor, Tensor | None]:
    """The scales of a layer on the device `meta`, of a weight and of the columns."""
    scale = torch.empty((layer.out_features, 1) if layer.per_row else (), device="meta")
    return scale, torch.empty(layer.in_features, device="meta") if layer.column_scales else None


class QuantLinear(HoldsCodes, nn.Linear):
    """nn.Linear with a low-bit or FP32 weight and a low-bit or FP32 input; the bias stays FP32.

    y = (x_codes @ w_codes^T) * w_scale * x_scale + bias, with x_codes those of x * column scale if there is one. `weight` holds
    the latent weights that are trained; `input_quantizer` quantizes the input.

    weight_bits, activation_bits: widths of `bitkd.quant.table`, or 32; InputError for others.
    per_row, column_scales, learned_scales, levels: see `bitkd.quant.spec.QuantSpec`.
    ste_clip: latent weights beyond it get no gradient; None lets every gradient pass.
    forward_clip: quantize the weights clipped to ±ste_clip.
    signed_input: False if the input has no negative values.

    Learned scales are the Parameters `weight_scale`, () or (rows, 1), and `column_scale`, (columns,); they start where they
    would be computed (`start_scales`).
    """

    weight_scale: nn.Parameter | None
    column_scale: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        weight_bits: int = 1,
        activation_bits: int = 32,
        per_row: bool = False,
        column_scales: bool = False,
        learned_scales: bool = False,
        levels: int = LEVELS[0],
        ste_clip: float | None = None,
        forward_clip: bool = False,
        signed_input: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.weight_bits, self.levels = weight_bits, levels
        row = weight_quantizer(weight_bits, levels=levels)
        self.weight_codes = _weight_codes(row, ste_clip if forward_clip else None)
        self.per_row = per_row
        self.column_scales, self.learned_scales = bool(row and column_scales), bool(row and learned_scales)
        self.codes_at = row.resolve_at() if row and learned_scales else None
        self.ste_clip, self.forward_clip = ste_clip, forward_clip
        self.input_quantizer = make_input_quantizer(activation_bits, in_features, signed_input)
        for name in SCALE_NAMES:
            self.register_parameter(name, None)
        if self.learned_scales:
            self.start_scales()

    @classmethod
    def from_float(cls, module: nn.Linear, **settings: Any) -> Self:
        """A QuantLinear that shares the Parameters of `module`; settings: the keyword arguments of `__init__`.

        If `module` is a QuantLinear, its input quantizer is kept as well, unless one of another width or for other inputs is
        asked for, and its learned scales, unless its weights are quantized otherwise.
        """
        new = cls(module.in_features, module.out_features, module.bias is not None, device="meta", **settings)
        new.weight, new.bias = module.weight, module.bias
        new.input_quantizer = quantizer_for(module, new.activation_bits, new.signed_input)
        if new.learned_scales:
            if isinstance(module, QuantLinear) and module.scale_settings == new.scale_settings:
                new.weight_scale, new.column_scale = module.weight_scale, module.column_scale
            else:
                new.start_scales()
        return new.train(module.training)

    @property
    def scale_settings(self) -> dict[str, Any]:
        """What its scales depend on beside its weights."""
        names = ("weight_bits", "per_row", "column_scales", "learned_scales", "levels")
        return {name: getattr(self, name) for name in names}

    @property
    def activation_bits(self) -> int:
        """Bits of the input."""
        return self.input_quantizer.bits

    @property
    def signed_input(self) -> bool:
        """Whether the input's quantizer takes negative values."""
        return self.input_quantizer.signed

    @property
    def product(self) -> ProductSpec:
        """How its weight is quantized."""
        return ProductSpec(
            self.weight_codes,
            self.per_row,
            self.ste_clip,
            fits_int8=self.weight_bits <= WIDEST,
            columns=self.column_scales,
            codes_at=self.codes_at,
        )

    @property
    def learned(self) -> LearnedScales:
        """Its learned scales."""
        return LearnedScales(() if self.weight_scale is None else (self.weight_scale,), self.column_scale)

    def start_scales(self) -> None:
        """Make new Parameters of the scales, with the values that they would be computed as."""
        if self.weight.is_meta:
            scale, column = _without_values(self)
        else:
            [(_, scale)], column = codes_and_scales((self.weight,), self.product._replace(codes_at=None))
        self.weight_scale = nn.Parameter(scale)
        self.column_scale = None if column is None else nn.Parameter(column)

    def quantized(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Its weight's codes (rows, columns), their scale () or (rows, 1), and the scale of its columns (columns,), or None."""
        [(codes, scale)], column = codes_and_scales((self.weight,), self.product, self.learned)
        return codes, scale, column

    @torch.no_grad()
    def dequantized(self) -> Tensor:
        """The quantized weight, (rows, columns); `weight` itself if it is FP32."""
        if self.weight_codes is None:
            return self.weight
        codes, scale, column = self.quantized()
        return codes * scale if column is None else codes * scale * column

    def forward(self, input: Tensor) -> Tensor:
        if self.weight_codes is None and self.activation_bits == FP32:
            return super().forward(input)
        return low_bit_linear(
            self,
            input,
            self.input_quantizer,
            self.product,
            self.bias,
            self.weight,
            held=_held_by(self),
            learned=self.learned,
        )

    def extra_repr(self) -> str:
        scales = "".join(f", {name}=True" for name in ("column_scales", "learned_scales") if getattr(self, name))
        return f"{super().extra_repr()}, W{self.weight_bits}A{self.activation_bits}, per_row={self.per_row}{scales}"


class QuantEmbedding(nn.Embedding):
    """nn.Embedding with a low-bit or FP32 table and one scale per row; only the rows that are looked up are quantized.

    weight_bits: a width of `bitkd.quant.table.WEIGHTS`, or 32; InputError for others.
    levels, ste_clip, forward_clip: as in QuantLinear. Its scales are always computed.
    """

    per_row = True

    def __init__(
        self,
        *args: Any,
        weight_bits: int = 1,
        levels: int = LEVELS[0],
        ste_clip: float | None = None,
        forward_clip: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(*args, **settings)
        self.weight_bits, self.levels = weight_bits, levels
        row = weight_quantizer(weight_bits, "embedding_bits", levels=levels)
        self.weight_codes = _weight_codes(row, ste_clip if forward_clip else None)
        self.ste_clip, self.forward_clip = ste_clip, forward_clip

    @classmethod
    def from_float(cls, module: nn.Embedding, **settings: Any) -> Self:
        """A QuantEmbedding that shares the Parameter of `module`; settings: weight_bits, levels, ste_clip, forward_clip."""
        new = cls(**embedding_options(module), device="meta", **settings)
        new.weight = module.weight
        return new.train(module.training)

    @torch.no_grad()
    def dequantized(self) -> Tensor:
        """The quantized table; `weight` itself if it is FP32."""
        if self.weight_codes is None:
            return self.weight
        return quantize_weight(self.weight, self.weight_codes, self.per_row)

    def forward(self, input: Tensor) -> Tensor:
        rows = super().forward(input)
        if self.weight_codes is None:
            return rows
        return quantize_weight(rows, self.weight_codes, self.per_row, clip=self.ste_clip)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, W{self.weight_bits}"


def embedding_options(module: nn.Embedding) -> dict[str, Any]:
    """The keyword arguments that nn.Embedding needs to be like `module`."""
    names = (
        "num_embeddings",
        "embedding_dim",
        "padding_idx",
        "max_norm",
        "norm_type",
        "scale_grad_by_freq",
        "sparse",
    )
    return {name: getattr(module, name) for name in names}


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
            scale, column = _without_values(self)
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
            held=_held_by(self),
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
