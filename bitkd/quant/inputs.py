"""Quantizers of activations, as modules: one that has learnable parameters keeps them in the model's state dict."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from bitkd.errors import InputError
from bitkd.quant.functional import quantize_tokens, token_codes
from bitkd.quant.table import FP32, activation_quantizer

WIDEST = 8
"""Codes of more bits would not fit into the int8 that a product keeps for its gradient."""


class InputQuantizer(nn.Module, ABC):
    """What QuantLinear and self-attention do to the activations that they read.

    A new class provides `codes` and `forward`, which agree: forward(x) = codes * scale, in x's type. To register it,
    add a row to `bitkd.quant.table.ACTIVATIONS`; it is then built by `Class(bits)`, or by `Class(bits, features, signed)` if
    the row says that it learns, on the CPU, and moved to the device of the weight. Each Linear and each of attention's four
    tensors has its own instance.

    Gradient: attention reads forward(x), so autograd takes forward's own backward. A QuantLinear multiplies the codes
    instead and sends the gradient with respect to the quantized input to `carrier(x)`. By default that is forward(x),
    so that the same backward decides what x and the quantizer's parameters (a learned step size, for example) get.
    """

    signed: bool = True
    """Whether it takes negative values."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        if bits > WIDEST and bits != FP32:
            raise InputError(
                f"{type(self).__name__}({bits}) is too wide; activations are quantized to at most {WIDEST} bits"
            )
        self.bits = bits

    @abstractmethod
    def codes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Whole numbers within -127 … 127, shaped like x, and the scale that they are multiplied by, both FP32.

        x: (..., width), one token along the last dimension.  scale: (..., 1), or () for all tokens alike.
        Without a gradient (`torch.no_grad`), and the same under autocast.
        """

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The quantized x, codes * scale, in x's type and with the gradient that this quantizer defines."""

    def carrier(self, x: Tensor) -> Tensor:
        """A tensor shaped like x whose gradient is that of forward(x). Its values are not read, so a quantizer that
        passes the gradient unchanged to x returns x itself and saves the time of `forward`."""
        value: Tensor = self(x)
        return value

    @property
    def calibrated(self) -> bool:
        """Whether it can be used. One that starts from data cannot until its `start` was called (see
        `bitkd.models.calibration.calibrate`)."""
        return True

    def start(self, magnitude: Tensor) -> None:
        """Begin with inputs of this mean magnitude, (), zeros left out; for one that is not calibrated."""

    def clear(self) -> None:
        """Take back what `start` did."""

    def extra_repr(self) -> str:
        return f"bits={self.bits}"


class FullPrecision(InputQuantizer):
    """Leaves activations as they are."""

    def __init__(self, bits: int = FP32) -> None:
        super().__init__(bits)

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Raises TypeError: activations that are not quantized have no codes."""
        raise TypeError("activations in full precision have no codes; ask for `bits` first")

    def forward(self, x: Tensor) -> Tensor:
        return x

    def carrier(self, x: Tensor) -> Tensor:
        return x


class PerToken(InputQuantizer):
    """Symmetric codes with one scale per token, computed from the token itself (`token_codes`); straight-through."""

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return token_codes(x, self.bits)

    def forward(self, x: Tensor) -> Tensor:
        return quantize_tokens(x, self.bits)

    def carrier(self, x: Tensor) -> Tensor:
        return x


class AttentionQuantizer(nn.Module):
    """The quantizers of self-attention: queries, keys, values and probabilities each have their own."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.query = make_input_quantizer(bits)
        self.key = make_input_quantizer(bits)
        self.value = make_input_quantizer(bits)
        self.probabilities = make_input_quantizer(bits, signed=False)
        self.bits = bits


def make_input_quantizer(bits: int, features: int | None = None, signed: bool = True) -> InputQuantizer:
    """A new quantizer of activations of `bits`; `FullPrecision` for 32. Raises InputError for an unknown width.

    features: of a Linear's input; None for attention's tensors.  signed: False for what has no negative values.
    """
    row = activation_quantizer(bits)
    if row is None:
        return FullPrecision()
    quantizer: InputQuantizer = row.resolve()(bits, features, signed) if row.learns else row.resolve()(bits)
    return quantizer
