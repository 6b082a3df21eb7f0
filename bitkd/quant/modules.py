"""Low-bit stand-ins for nn.Linear and nn.Embedding, with the same parameter names."""

from typing import Any, Self

import torch
from torch import Tensor, nn

from bitkd.quant.functional import ClippedCodes, quantize_weight
from bitkd.quant.inputs import WIDEST, InputQuantizer, make_input_quantizer
from bitkd.quant.product import Codes, LearnedScales, ProductSpec, codes_and_scales, low_bit_linear
from bitkd.quant.reuse import HeldTerms, HoldsCodes
from bitkd.quant.table import FP32, LEVELS, WeightQuantizer, weight_quantizer

COLUMN_SCALE = "column_scale"
SCALE_NAMES = ("weight_scale", COLUMN_SCALE)
"""Names of the Parameters of learned scales; None where they are computed."""


def _weight_codes(row: WeightQuantizer | None, clip: float | None) -> Codes | None:
    if row is None:
        return None
    return row.resolve() if clip is None else ClippedCodes(row.resolve(), clip)


def held_by(layer: HoldsCodes) -> HeldTerms | None:
    """Where the layer keeps its weights' codes; None for a compiled layer, which would be compiled again at each change."""
    return None if torch.compiler.is_compiling() else layer.held


def quantizer_for(module: Any, bits: int, signed: bool = True, column_scales: bool = False) -> InputQuantizer:
    """The input quantizer of `module`, with all that it has learned, if it is of `bits` and for such inputs; otherwise a new
    one.

    signed: whether the input has negative values.  column_scales: whether it is multiplied by scales of columns.
    """
    old, new = getattr(module, "input_quantizer", None), make_input_quantizer(bits, module.in_features, signed)
    same = getattr(module, "column_scales", False) == column_scales or not [*new.parameters()]
    if same and isinstance(old, InputQuantizer) and (old.bits, old.signed) == (new.bits, new.signed):
        return old
    return new.to(next(module.parameters()).device)


def without_values(layer: Any) -> tuple[Tensor, Tensor | None]:
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
        new.input_quantizer = quantizer_for(module, new.activation_bits, new.signed_input, new.column_scales)
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
            scale, column = without_values(self)
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
            held=held_by(self),
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
