"""Packed layers: the very results of the layers that they are made of."""

import pytest
import torch
from torch import nn

from bitkd.errors import InputError
from bitkd.quant.int8 import Int8Embedding, Int8Linear
from bitkd.quant.modules import QuantEmbedding, QuantLinear
from bitkd.quant.packed import PackedEmbedding, PackedLinear, pack_layers, packing_of
from bitkd.quant.packing import BITS, TRITS, TWO_BITS
from bitkd.quant.splitting import split_layers

SIZES = [(1, 1), (5, 3), (8, 8), (13, 30), (64, 17)]
"""(inputs, outputs)"""


def linear(inputs, outputs, bits=1, activation_bits=8, per_row=False, bias=True, zero=False, split=None):
    torch.manual_seed(inputs)
    layer = QuantLinear(
        inputs, outputs, bias, weight_bits=bits, activation_bits=activation_bits, per_row=per_row
    ).eval()
    with torch.no_grad():
        if zero:
            layer.weight[0] = 0
        if split:
            model = nn.Sequential(layer)
            split_layers(model)
            if split == "trained":  # the halves' scales differ
                model[0].first.weight.add_(0.3 * torch.randn_like(model[0].first.weight))
            return model.eval()[0]
    return layer


@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
@pytest.mark.parametrize("activation_bits", [8, 32])
@torch.no_grad()
def test_a_packed_linear_gives_the_very_results(inputs, outputs, activation_bits):
    x = torch.randn(2, 7, inputs)
    x[0, 3] = 0
    for bits, ternary, split in (
        (1, TWO_BITS, None),
        (2, TWO_BITS, None),
        (2, TRITS, None),
        (2, TWO_BITS, "fresh"),
        (2, TWO_BITS, "trained"),
    ):
        for per_row in (False, True):
            for zero in (False, True):
                layer = linear(inputs, outputs, bits, activation_bits, per_row, bias=not zero, zero=zero, split=split)
                packed = PackedLinear.from_quantized(layer, ternary)
                assert torch.equal(packed(x), layer(x)), (bits, split, per_row, zero)
                assert len(packed.halves()) == (2 if split else 1)
                assert packed.packing is (BITS if split or bits == 1 else ternary)


@pytest.mark.parametrize(("width", "rows"), SIZES)
@torch.no_grad()
def test_a_packed_table_gives_the_very_rows(width, rows):
    ids = torch.arange(rows).repeat(2, 1)
    for bits, levels, split in (
        (1, 3, False),
        (2, 3, False),
        (2, 4, False),
        (2, 3, True),
        (4, 3, False),
        (8, 3, False),
    ):
        torch.manual_seed(width)
        model = nn.Sequential(QuantEmbedding(rows, width, padding_idx=0, weight_bits=bits, levels=levels))
        model[0].weight[rows // 2] = 0
        if split:
            split_layers(model)
        for ternary in (TWO_BITS, TRITS):
            packed = PackedEmbedding.from_quantized(model[0], ternary)
            assert torch.equal(packed(ids), model(ids))
            assert packed.padding_idx == 0


@torch.no_grad()
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize(("bits", "levels"), [(1, 3), (2, 3), (2, 4)])
@pytest.mark.parametrize("activation_bits", [8, 32])
def test_scales_of_columns_and_four_levels_give_the_very_results(bits, levels, learned, activation_bits):
    for columns in (False, True):
        torch.manual_seed(0)
        layer = QuantLinear(
            33,
            17,
            weight_bits=bits,
            levels=levels,
            activation_bits=activation_bits,
            per_row=True,
            column_scales=columns,
            learned_scales=learned,
        ).eval()
        if learned:
            layer.weight_scale.mul_(1.3)
        x = torch.randn(2, 7, 33)
        packed = PackedLinear.from_quantized(layer)
        assert torch.equal(packed(x), layer(x))
        assert packed.packing.digits == (2 if bits == 1 else levels)


@torch.no_grad()
def test_signs_of_weights_too_small_for_a_scale_are_lost():
    layer = linear(5, 3, per_row=True)
    layer.weight[1] = torch.tensor([-1e-45, 0, 0, 0, 0])
    layer.weight[2] = 0
    packed = PackedLinear.from_quantized(layer)
    assert packed.scale[1] == packed.scale[2] == 0
    assert torch.equal(packed.packed[1], packed.packed[2])


@pytest.mark.parametrize("size", [(4, 6), (33, 17), (1, 1)])
@torch.no_grad()
def test_eight_bits_of_what_has_eight_bits_are_the_very_bits(size):
    rows, columns = size
    torch.manual_seed(0)
    for factor in (1, 1e-4, 1e-32, 3e4):
        table = nn.Embedding(rows, columns)
        table.weight.mul_(factor)
        table.weight[rows // 2] = 0
        first = Int8Embedding.from_float(table)
        error = (first.dequantized() - table.weight).abs().amax(-1)
        assert (error <= 0.51 * first.scale).all()
        table.weight.copy_(first.dequantized())
        second = Int8Embedding.from_float(table)
        assert torch.equal(first.codes, second.codes)
        assert torch.equal(first.scale, second.scale)
        assert torch.equal(second(torch.arange(rows)), table.weight)


@torch.no_grad()
def test_a_linear_of_eight_bits_computes_with_its_own_weights():
    float_layer = nn.Linear(9, 5)
    layer = Int8Linear.from_float(float_layer)
    float_layer.weight.copy_(layer.dequantized())
    x = torch.randn(4, 9)
    assert torch.equal(layer(x), float_layer(x))


def test_packed_layers_stay_in_fp32():
    packed = PackedLinear.from_quantized(linear(8, 4))
    for convert in (packed.half, packed.double, lambda: packed.to(torch.bfloat16)):
        with pytest.raises(InputError, match="computes in FP32"):
            convert()
    assert packed.to("cpu").to(torch.float32) is packed


def test_empty_layers_have_the_shapes_of_full_ones():
    def model():
        return nn.Sequential(QuantEmbedding(7, 5), linear(5, 3, bits=2), nn.Linear(3, 3)).eval()

    full, empty = model(), model()
    pack_layers(full, int8=["2"])
    with torch.device("meta"):
        pack_layers(empty, int8=["2"], fill=False)
    assert [type(layer).__name__ for layer in full] == ["PackedEmbedding", "PackedLinear", "Int8Linear"]
    assert {name: t.shape for name, t in empty.state_dict().items()} == {
        n: t.shape for n, t in full.state_dict().items()
    }


def test_widths_without_a_packing_are_refused():
    with pytest.raises(InputError, match="weights of 3 bits cannot be packed; those of 1, 2, 4 and 8 bits can"):
        packing_of(3)
