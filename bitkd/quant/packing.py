"""Codes of low-bit weights as bytes: several codes share a byte, as the digits of a number.

Bits lie in little order, row by row, as `numpy.packbits(bitorder="little")` lays them.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from bitkd.errors import InputError


@dataclass(frozen=True)
class Packing:
    """How codes become bytes: a byte is the sum of digit[i] * base^i, and a code is lowest + step * digit."""

    name: str
    """Its name in config.json."""

    base: int
    per_byte: int
    """Codes in a byte."""

    lowest: int
    """The code of digit 0."""

    step: int = 1
    """Difference between the codes of two neighbouring digits."""

    unused: int = 0
    """How many of the highest digits stand for no code."""

    @property
    def digits(self) -> int:
        """How many digits stand for codes."""
        return self.base - self.unused

    @property
    def bits(self) -> int:
        """Of the weights that it is for."""
        return max(1, (self.digits - 1).bit_length())

    def columns(self, codes: int) -> int:
        """Bytes of a row of so many codes; the last byte is filled up with digits 0."""
        return -(-codes // self.per_byte)


BITS = Packing("1 bit", base=2, per_byte=8, lowest=-1, step=2)
"""Codes -1 and +1."""

TWO_BITS = Packing("2 bits", base=4, per_byte=4, lowest=-1, unused=1)
"""Codes -1, 0 and +1, two bits each."""

TRITS = Packing("5 in a byte", base=3, per_byte=5, lowest=-1)
"""Codes -1, 0 and +1, 1.6 bits each."""

FOUR_LEVELS = Packing("4 levels", base=4, per_byte=4, lowest=-3, step=2)
"""Codes -3, -1, +1 and +3, two bits each."""

FOUR_BITS = Packing("4 bits", base=16, per_byte=2, lowest=-7, unused=1)
"""Codes -7 to +7."""

EIGHT_BITS = Packing("8 bits", base=256, per_byte=1, lowest=-127, unused=1)
"""Codes -127 to +127."""

TERNARY_PACKINGS = {packing.name: packing for packing in (TWO_BITS, TRITS)}
"""By name, those that a ternary weight can have; all other weights have one alone."""

PACKINGS = TERNARY_PACKINGS | {packing.name: packing for packing in (BITS, FOUR_LEVELS, FOUR_BITS, EIGHT_BITS)}


def find_packing(bits: int, levels: int = 3, ternary: Packing = TWO_BITS) -> Packing | None:
    """The packing of weights of this width; None if there is none.

    levels: of two bits.  ternary: the packing of ternary weights.
    """
    return {1: BITS, 2: ternary if levels == 3 else FOUR_LEVELS, 4: FOUR_BITS, 8: EIGHT_BITS}.get(bits)


def packing_of(bits: int, levels: int = 3, ternary: Packing = TWO_BITS) -> Packing:
    """As `find_packing`. Raises InputError if there is none."""
    if (found := find_packing(bits, levels, ternary)) is None:
        raise InputError(f"weights of {bits} bits cannot be packed; those of 1, 2, 4 and 8 bits can")
    return found


def pack_codes(codes: Tensor, packing: Packing) -> Tensor:
    """uint8 of shape (rows, bytes).  codes: (rows, columns) of whole numbers, of any type.

    Raises InputError if the packing has no digit for a code.
    """
    shifted = codes.to(torch.int16) - packing.lowest
    digits = shifted // packing.step
    if ((digits < 0) | (digits >= packing.digits) | (digits * packing.step != shifted)).any():
        allowed = [packing.lowest + packing.step * digit for digit in range(packing.digits)]
        raise InputError(
            f"codes from {codes.min():g} to {codes.max():g} cannot be packed as {packing.name}: it has {allowed}"
        )
    filled = torch.nn.functional.pad(digits, (0, -codes.shape[1] % packing.per_byte))
    places = torch.tensor([packing.base**i for i in range(packing.per_byte)], dtype=torch.int16, device=codes.device)
    return (filled.unflatten(1, (-1, packing.per_byte)) * places).sum(-1, dtype=torch.int16).to(torch.uint8)


def unpack_codes(packed: Tensor, packing: Packing, columns: int, dtype: torch.dtype = torch.int8) -> Tensor:
    """Codes of shape (rows, columns) as numbers of `dtype`, the inverse of `pack_codes`.

    packed: uint8 of shape (rows, bytes).
    """
    rows, width = packed.shape
    table = _codes_of_bytes(packing, dtype, packed.device)
    codes = table.index_select(0, packed.reshape(-1).int()).view(rows, width * packing.per_byte)
    return codes if codes.shape[1] == columns else codes[:, :columns]


def is_packed_by(packed: Tensor, packing: Packing, columns: int) -> bool:
    """Whether all bytes are such as `pack_codes` writes: of digits that stand for codes, and filled up with digits 0.

    packed: uint8 of shape (rows, bytes).
    """
    written = (_digits_of_bytes(packing) < packing.digits).all(1) & (
        torch.arange(256, device="cpu") < packing.base**packing.per_byte
    )
    if torch.bincount(packed.flatten(), minlength=256).cpu()[~written].any():
        return False
    left = columns % packing.per_byte
    return not left or not (packed[:, -1] >= packing.base**left).any()


@cache
def _codes_of_bytes(packing: Packing, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The codes in each byte: of shape (256, codes in a byte)."""
    return (packing.lowest + packing.step * _digits_of_bytes(packing)).to(device, dtype)


def _digits_of_bytes(packing: Packing) -> Tensor:
    """The digits in each byte: int64 of shape (256, codes in a byte)."""
    places = torch.tensor([packing.base**i for i in range(packing.per_byte)], device="cpu")
    return torch.arange(256, device="cpu")[:, None] // places % packing.base
