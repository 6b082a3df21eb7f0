"""The quantizers by bit width: the one place where another is registered.

It needs no torch, so that settings can be checked without it: a row names its implementation as "module:name", or is given
the function or class itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

from bitkd.errors import InputError

FP32 = 32
"""The width of what is not quantized."""

TERNARY = 2
"""The width of ternary weights."""

HALF_BITS = 1
"""The width of both halves that a splittable weight is split into."""


@dataclass(frozen=True)
class WeightQuantizer:
    """How weights of one width are quantized."""

    title: str
    """Its name in reports, such as "1-bit"."""

    name: str
    """Its name in messages, such as "binary"."""

    codes: str | Callable[..., Any]
    """A function of (w, per_row) that returns whole-numbered codes in w's type and their FP32 scale, as
    `bitkd.quant.functional.binary_codes` does; or where to find it, as "module:name"."""

    codes_at: str | Callable[..., Any] | None = None
    """A function of (w, scale), as `bitkd.quant.functional.binary_codes_at`, for learned scales; None if there are none."""

    words_only: bool = False
    """Whether only word embeddings can have it."""

    splittable: bool = False
    """Whether `bitkd.quant.splitting` can split such a weight into two of HALF_BITS. Its law is that of ternary codes: another
    splittable width needs a split of its own there."""

    def resolve(self) -> Callable[..., Any]:
        """The function that `codes` names."""
        return _resolve(self.codes)

    def resolve_at(self) -> Callable[..., Any]:
        """The function that `codes_at` names. Raises InputError if there is none."""
        if self.codes_at is None:
            raise InputError(f"scales of {self.name} weights cannot be learned; use learned_scales=false")
        return _resolve(self.codes_at)


@dataclass(frozen=True)
class ActivationQuantizer:
    """How activations of one width are quantized."""

    quantizer: str | Callable[..., Any]
    """A function of the width that returns a `bitkd.quant.inputs.InputQuantizer`, such as its class; or where to
    find it, as "module:name"."""

    learns: bool = False
    """Whether it has parameters: it is then a function of the width, of the features of a Linear's input (None for
    attention's tensors) and of whether there are negative values, and `OptimSpec.scales_lr` is part of a stage's fingerprint."""

    def resolve(self) -> Callable[..., Any]:
        """The function that `quantizer` names."""
        return _resolve(self.quantizer)


_HERE = "bitkd.quant.functional"

WEIGHTS: dict[int, WeightQuantizer] = {
    1: WeightQuantizer("1-bit", "binary", f"{_HERE}:binary_codes", f"{_HERE}:binary_codes_at"),
    TERNARY: WeightQuantizer(
        "2-bit", "ternary", f"{_HERE}:ternary_codes", f"{_HERE}:ternary_codes_at", splittable=True
    ),
    4: WeightQuantizer("4-bit", "15 levels", f"{_HERE}:codes_of_4_bits", words_only=True),
    8: WeightQuantizer("8-bit", "255 levels", f"{_HERE}:codes_of_8_bits", words_only=True),
}
"""By bits of a weight. To add a width, add a row."""

FOUR_LEVELS = WeightQuantizer("2-bit", "four levels", f"{_HERE}:four_level_codes", f"{_HERE}:four_level_codes_at")
"""What TERNARY bits hold with `QuantSpec.levels` = 4."""

LEVELS = (3, 4)
"""How many values a weight of TERNARY bits may have."""

_ELASTIC = ActivationQuantizer("bitkd.quant.elastic:Elastic", learns=True)

ACTIVATIONS: dict[int, ActivationQuantizer] = {
    1: _ELASTIC,
    2: _ELASTIC,
    4: _ELASTIC,
    8: ActivationQuantizer("bitkd.quant.inputs:PerToken"),
}
"""By bits of an activation. To add a width, add a row."""


def weight_quantizer(
    bits: int, field: str = "weight_bits", alternative: str = "", levels: int = LEVELS[0]
) -> WeightQuantizer | None:
    """The row for a width; None for 32.

    field: the setting's name, for the message; only `embedding_bits` may be a width for words only.
    alternative: what else it may be, for the message.  levels: one of LEVELS, of TERNARY bits.
    Raises InputError if there is no such width.
    """
    allowed = {width: row for width, row in WEIGHTS.items() if field == "embedding_bits" or not row.words_only}
    if bits != FP32 and bits not in allowed:
        raise InputError(
            _unsupported(field, bits, [f"{width} ({row.name})" for width, row in sorted(allowed.items())], alternative)
        )
    return FOUR_LEVELS if bits == TERNARY and levels == 4 else WEIGHTS.get(bits)


def activation_quantizer(bits: int) -> ActivationQuantizer | None:
    """The row of ACTIVATIONS for a width; None for 32. Raises InputError if the table has no such width."""
    if bits != FP32 and bits not in ACTIVATIONS:
        raise InputError(_unsupported("activation_bits", bits, [str(width) for width in sorted(ACTIVATIONS)], ""))
    return ACTIVATIONS.get(bits)


def is_splittable(bits: int, levels: int = LEVELS[0]) -> bool:
    """Whether weights of this width can be split into two of HALF_BITS."""
    row = weight_quantizer(bits, "embedding_bits", levels=levels)
    return row is not None and row.splittable


def weight_bits_of(precision: str) -> int:
    """Bits of the weights in a precision such as W1A8."""
    bits = precision.removeprefix("W").partition("A")[0]
    return int(bits) if bits.isdecimal() else FP32


def _unsupported(field: str, bits: Any, allowed: list[str], alternative: str) -> str:
    return f"{field}={bits!r} is unsupported; use {', '.join(allowed)} or {FP32}{alternative}"


def _resolve(implementation: str | Callable[..., Any]) -> Callable[..., Any]:
    found: Callable[..., Any] = resolve_name(implementation) if isinstance(implementation, str) else implementation
    return found
