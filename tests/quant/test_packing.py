"""Codes as bytes."""

import pytest
import torch

from bitkd.errors import InputError
from bitkd.quant.packing import BITS, PACKINGS, TRITS, TWO_BITS, is_packed_by, pack_codes, unpack_codes

packings = pytest.mark.parametrize("packing", PACKINGS.values(), ids=lambda packing: packing.name)


def codes_of(packing, rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return packing.lowest + packing.step * torch.randint(packing.digits, (rows, columns), generator=generator)


@packings
def test_unpacking_gives_back_the_codes_of_any_size(packing):
    for columns in (*range(1, 18), 768):
        codes = codes_of(packing, 3, columns)
        packed = pack_codes(codes.float(), packing)
        assert (packed.dtype, packed.shape) == (torch.uint8, (3, packing.columns(columns)))
        assert torch.equal(unpack_codes(packed, packing, columns), codes.to(torch.int8))
        assert is_packed_by(packed, packing, columns)


@packings
def test_packing_gives_back_every_byte_that_packing_writes(packing):
    packed = torch.arange(256, dtype=torch.uint8)[:, None]
    written = torch.stack([torch.tensor(is_packed_by(row[None], packing, packing.per_byte)) for row in packed])
    assert written.sum() == packing.digits**packing.per_byte
    packed = packed[written]
    assert torch.equal(pack_codes(unpack_codes(packed, packing, packing.per_byte), packing), packed)


@packings
def test_the_first_code_has_the_lowest_digit(packing):
    highest = packing.lowest + packing.step * (packing.digits - 1)
    codes = torch.full((1, packing.per_byte), packing.lowest)
    codes[0, 0] = highest
    assert pack_codes(codes, packing).item() == packing.digits - 1
    assert pack_codes(codes.flip(1), packing).item() == (packing.digits - 1) * packing.base ** (packing.per_byte - 1)


def test_bits_lie_as_numpy_packs_them():
    import numpy

    codes = codes_of(BITS, 5, 21)
    expected = numpy.packbits(codes.numpy() > 0, axis=1, bitorder="little")
    assert torch.equal(pack_codes(codes, BITS), torch.from_numpy(expected))


@packings
def test_what_fills_up_a_row_is_zero(packing):
    packed = pack_codes(codes_of(packing, 4, packing.per_byte + 1), packing)
    assert is_packed_by(packed, packing, packing.per_byte + 1)
    if packing.per_byte == 1:  # nothing is filled up; one digit stands for no code
        packed[2, 1] = packing.digits
    else:
        packed[2, 1] += packing.base ** (packing.per_byte - 1)
    assert not is_packed_by(packed, packing, packing.per_byte + 1)


@pytest.mark.parametrize(("packing", "code"), [(BITS, 0), (BITS, 3), (TWO_BITS, -2), (TWO_BITS, 2), (TRITS, 2)])
def test_codes_that_a_packing_has_no_digit_for_are_refused(packing, code):
    codes = codes_of(packing, 2, 9)
    codes[1, 4] = code
    with pytest.raises(InputError, match=f"cannot be packed as {packing.name}"):
        pack_codes(codes, packing)
