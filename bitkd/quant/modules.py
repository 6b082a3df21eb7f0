"""Low-bit stand-ins for nn.Linear and nn.Embedding, with the same parameter names."""

from typing import Any, Self

import torch
from torch import Tensor, nn

from bitkd.quant.functional import ClippedCodes, quantize_weight
from bitkd.quant.inputs import WIDEST, InputQuantizer, make_input_quantizer
from bitkd.quant.product import Codes, ProductSpec, low_bit_linear
from bitkd.quant.reuse import HeldTerms, HoldsCodes
from bitkd.quant.table import FP32, HALF_BITS, weight_quantizer


def _weight_codes(bits: int, clip: float | None) -> Codes | None:
    row = weight_quantizer(bits)
    if row is None:
        return None
    return row.resolve() if clip is None else ClippedCodes(row.resolve(), clip)


def _held_by(layer: HoldsCodes) -> HeldTerms | None:
    """Where the layer keeps its weights' codes; None for a compiled layer, which would be compiled again at each change."""
    return None if torch.compiler.is_compiling() else layer.held


SCALE_NAMES = ("weight_scale", "column_scale")
"""Names of parameters that are scales. They are trained as what an InputQuantizer learns (`OptimSpec.scales_lr`)."""


def quantizer_for(module: Any, bits: int, signed: bool = True) -> InputQuantizer:
    """The input quantizer of `module`, with all that it has learned, if it is of `bits` and for such inputs; otherwise a new
    one.

    signed: whether the input has negative values.
    """
    old, new = getattr(module, "input_quantizer", None), make_input_quantizer(bits, module.in_features, signed)
    if isinstance(old, InputQuantizer) and (old.bits, old.signed) == (new.bits, new.signed):
        return old
    return new.to(next(module.parameters()).device)


class QuantLinear(HoldsCodes, nn.Linear):
    """nn.Linear with a low-bit or FP32 weight and a low-bit or FP32 input; the bias stays FP32.

    y = (x_codes @ w_codes^T) * w_scale * x_scale + bias. `weight` holds the latent weights that are trained;
    `input_quantizer` quantizes the input.

    weight_bits, activation_bits: widths of `bitkd.quant.table`, or 32; InputError for others.
    per_row: one scale for each output row instead of one for the matrix.
    ste_clip: latent weights beyond it get no gradient; None lets every gradient pass.
    forward_clip: quantize the weights clipped to ±ste_clip.
    signed_input: False if the input has no negative values.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        weight_bits: int = 1,
        activation_bits: int = 32,
        per_row: bool = False,
        ste_clip: float | None = None,
        forward_clip: bool = False,
        signed_input: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.weight_bits = weight_bits
        self.weight_codes = _weight_codes(weight_bits, ste_clip if forward_clip else None)
        self.per_row = per_row
        self.ste_clip, self.forward_clip = ste_clip, forward_clip
        self.input_quantizer = make_input_quantizer(activation_bits, in_features, signed_input)

    @classmethod
    def from_float(cls, module: nn.Linear, **settings: Any) -> Self:
        """A QuantLinear that shares the Parameters of `module`; settings: the keyword arguments of `__init__`.

        If `module` is a QuantLinear, its input quantizer is kept as well, unless one of another width or for other inputs is
        asked for.
        """
        new = cls(module.in_features, module.out_features, module.bias is not None, device="meta", **settings)
        new.weight, new.bias = module.weight, module.bias
        new.input_quantizer = quantizer_for(module, new.activation_bits, new.signed_input)
        return new.train(module.training)

    @property
    def activation_bits(self) -> int:
        """Bits of the input."""
        return self.input_quantizer.bits

    @property
    def signed_input(self) -> bool:
        """Whether the input's quantizer takes negative values."""
        return self.input_quantizer.signed

    def forward(self, input: Tensor) -> Tensor:
        if self.weight_codes is None and self.activation_bits == FP32:
            return super().forward(input)
        spec = ProductSpec(self.weight_codes, self.per_row, self.ste_clip, fits_int8=self.weight_bits <= WIDEST)
        return low_bit_linear(self, input, self.input_quantizer, spec, self.bias, self.weight, held=_held_by(self))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, W{self.weight_bits}A{self.activation_bits}, per_row={self.per_row}"


class QuantEmbedding(nn.Embedding):
    """nn.Embedding with a low-bit or FP32 table and one scale per row; only the rows that are looked up are quantized.

    weight_bits: a width of `bitkd.quant.table.WEIGHTS`, or 32; InputError for others.
    ste_clip, forward_clip: as in QuantLinear.
    """

    per_row = True

    def __init__(
        self,
        *args: Any,
        weight_bits: int = 1,
        ste_clip: float | None = None,
        forward_clip: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(*args, **settings)
        self.weight_bits = weight_bits
        self.weight_codes = _weight_codes(weight_bits, ste_clip if forward_clip else None)
        self.ste_clip, self.forward_clip = ste_clip, forward_clip

    @classmethod
    def from_float(cls, module: nn.Embedding, **settings: Any) -> Self:
        """A QuantEmbedding that shares the Parameter of `module`; settings: weight_bits, ste_clip, forward_clip."""
        new = cls(**embedding_options(module), device="meta", **settings)
        new.weight = module.weight
        return new.train(module.training)

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
    product. Both halves read one quantized input, so the quantizer belongs to the pair.

    input_quantizer: None takes that of `first`.
    """

    def __init__(self, first: QuantLinear, second: QuantLinear, input_quantizer: InputQuantizer | None = None) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.input_quantizer = input_quantizer or first.input_quantizer
        for half in (first, second):  # one quantizer, registered once
            half.input_quantizer = make_input_quantizer(FP32)
        self.train(first.training)

    @classmethod
    def from_float(cls, module: nn.Linear, **settings: Any) -> Self:
        """A pair shaped like `module`, all zeros: to be filled by `load_state_dict`.

        settings: activation_bits, signed_input, per_row, ste_clip. The input quantizer of a QuantLinear is kept, unless one of
        another width or for other inputs is asked for.
        """
        bits, signed = settings.pop("activation_bits", FP32), settings.pop("signed_input", True)
        halves = []
        for _ in range(2):
            half = QuantLinear.from_float(module, weight_bits=HALF_BITS, **settings)
            half.weight = _blank(module.weight)
            half.bias = None if module.bias is None else _blank(module.bias)
            halves.append(half)
        return cls(halves[0], halves[1], quantizer_for(module, bits, signed))

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

    def forward(self, input: Tensor) -> Tensor:
        first, second = self.first, self.second
        bias = None if first.bias is None else first.bias + second.bias
        exact = not self.training and self.activation_bits < FP32
        spec = ProductSpec(first.weight_codes, first.per_row, first.ste_clip, exact)
        weights = (first.weight, second.weight)
        return low_bit_linear(self, input, self.input_quantizer, spec, bias, *weights, held=_held_by(self))


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

    def forward(self, input: Tensor) -> Tensor:
        return self.first(input) + self.second(input)
