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

    def columns(self, codes: int) -> int:
        """Bytes of a row of so many codes; the last byte is filled up with digits 0."""
        return -(-codes // self.per_byte)


BITS = Packing("1 bit", base=2, per_byte=8, lowest=-1, step=2)
"""Codes -1 and +1."""

TWO_BITS = Packing("2 bits", base=4, per_byte=4, lowest=-1, unused=1)
"""Codes -1, 0 and +1, two bits each."""

TRITS = Packing("5 in a byte", base=3, per_byte=5, lowest=-1)
"""Codes -1, 0 and +1, 1.6 bits each."""

PACKINGS = {packing.name: packing for packing in (BITS, TWO_BITS, TRITS)}


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
