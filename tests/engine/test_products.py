"""Every product of every kernel gives the simulation's bits."""

import pytest
import torch

from bitkd.engine.native import ACTIVATIONS, KERNELS, EncoderShape, NativeEncoder
from bitkd.quant.inputs import make_input_quantizer
from bitkd.quant.packed import PackedLinear
from bitkd.quant.packing import BITS, TWO_BITS, pack_codes

SHAPES = [  # hidden size, heads, head size, neurons
    (32, 4, 8, 64),
    (384, 2, 32, 200),
    (256, 4, 64, 512),
    (61, 3, 5, 131),
    (1, 1, 1, 1),
    (130, 3, 16, 67),
]
KINDS = [(bits, split, per_row) for bits, split in ((1, False), (2, False), (1, True)) for per_row in (False, True)]
KINDS += [(1, False, "and columns"), (2, False, "and columns"), (1, True, "and columns")]


def make_linear(outputs, inputs, bits, split, per_row, generator):
    """A packed Linear of random codes, scales and biases; its first row is all -1 or 0.  per_row: "and columns" adds scales of
    columns, one of them 0."""
    packing, columns = BITS if bits == 1 else TWO_BITS, per_row == "and columns"
    linear = PackedLinear(
        inputs,
        outputs,
        packing=packing,
        per_row=bool(per_row),
        split=split,
        column_scales=columns,
        input_quantizer=make_input_quantizer(8),
    )
    if columns:
        linear.column_scale.copy_(torch.rand(inputs, generator=generator))
        linear.column_scale[-1] = 0
    for packed, scale in linear.halves():
        digits = torch.randint(packing.digits, (outputs, inputs), generator=generator)
        codes = packing.lowest + packing.step * digits
        codes[0] = codes[0].clamp_max(0) if bits == 2 else -1
        packed.copy_(pack_codes(codes, packing))
        scale.copy_(torch.rand(scale.shape, generator=generator))
    linear.bias.copy_(torch.randn(outputs, generator=generator))
    return linear


def make_inputs(tokens, width, generator):
    """Random rows of different sizes, with a row of zeros, one of largest codes only, and one of tiny numbers."""
    x = torch.randn(tokens, width, generator=generator) * torch.logspace(-3, 3, tokens)[:, None]
    x[0] = 0
    x[1] = 5.0
    x[2] *= 1e-36
    return x


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("bits", "split", "per_row"), KINDS)
@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_a_product_of_the_engine_is_that_of_the_packed_layer(engine, sizes, bits, split, per_row, kernel):
    generator = torch.Generator().manual_seed(sum(sizes))
    hidden, heads, head_size, neurons = sizes
    width = heads * head_size
    try:
        native = NativeEncoder(engine, EncoderShape(2, hidden, heads, head_size, neurons, 1e-12), kernel)
    except ValueError as error:
        pytest.skip(str(error))
    places = {
        "query": (width, hidden),
        "key": (width, hidden),
        "value": (width, hidden),
        "attention_output": (hidden, width),
        "up": (neurons, hidden),
        "down": (hidden, neurons),
    }
    layers = [
        {name: make_linear(*place, bits, split, per_row, generator) for name, place in places.items()} for _ in range(2)
    ]
    for i, linears in enumerate(layers):
        for name, linear in linears.items():
            native.set_linear(i, name, linear.halves(), bits, linear.bias, linear.column_scale)
        for which in range(2):
            native.set_norm(i, which, torch.ones(hidden), torch.zeros(hidden))
    native.finish()
    for i, linears in enumerate(layers):
        for tokens, threads in ((4, 1), (29, 2)):
            x = make_inputs(tokens, hidden, generator)
            together = torch.cat([linears[name](x) for name in ("query", "key", "value")], dim=-1)
            assert torch.equal(native.linear(i, "qkv", x, threads), together)
            for name in ("attention_output", "up", "down"):
                x = make_inputs(tokens, linears[name].in_features, generator)
                assert torch.equal(native.linear(i, name, x, threads), linears[name](x)), name


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_scales_of_columns_come_behind_the_activation_function(engine, activation):
    """The whole layer, with scales of columns that are all one, is the layer without."""
    torch.manual_seed(0)
    hidden = torch.randn(19, 32)
    found = []
    for has_columns in (False, True):
        generator = torch.Generator().manual_seed(1)
        native = NativeEncoder(engine, EncoderShape(1, 32, 4, 8, 40, 1e-12, activation))
        for name in ("query", "key", "value", "attention_output", "up", "down"):
            rows, width = native.shape.sizes(name)
            linear = make_linear(rows, width, 1, False, True, generator)
            column = torch.ones(width) if has_columns else None
            native.set_linear(0, name, linear.halves(), 1, linear.bias, column)
        for which in range(2):
            native.set_norm(0, which, torch.ones(32), torch.zeros(32))
        native.finish()
        found.append(native.forward(hidden.clone(), [0, 7, 19]))
    assert torch.equal(*found)


def test_a_fresh_pair_is_multiplied_as_the_ternary_weight_that_it_was(engine):
    generator = torch.Generator().manual_seed(0)
    linear = make_linear(40, 32, 1, True, True, generator)
    linear.second_scale.copy_(linear.scale)
    native = NativeEncoder(engine, EncoderShape(1, 32, 4, 8, 40, 1e-12))
    others = {name: make_linear(32, 32, 1, False, False, generator) for name in ("query", "key", "value")}
    others |= {"attention_output": make_linear(32, 32, 2, False, True, generator), "up": linear}
    others |= {"down": make_linear(32, 40, 2, False, False, generator)}  # kinds may be mixed
    for name, each in others.items():
        native.set_linear(0, name, each.halves(), 1 if each.packing == BITS else 2, each.bias)
    for which in range(2):
        native.set_norm(0, which, torch.ones(32), torch.zeros(32))
    native.finish()
    x = make_inputs(9, 32, generator)
    for name in ("attention_output", "up"):
        assert torch.equal(native.linear(0, name, x), others[name](x))


WRONG = {
    "another shape": lambda w: w | {"name": "up"},
    "another layer": lambda w: w | {"layer": 1},
    "too few bytes": lambda w: w | {"halves": [(w["halves"][0][0][:, :3], w["halves"][0][1])]},
    "another type": lambda w: w | {"halves": [(w["halves"][0][0].int(), w["halves"][0][1])]},
    "scales for some rows": lambda w: w | {"halves": [(w["halves"][0][0], torch.ones(7))]},
    "scales in FP64": lambda w: w | {"halves": [(w["halves"][0][0], torch.ones(32).double())]},
    "a short second half": lambda w: w | {"halves": [w["halves"][0], (w["halves"][0][0][:8], torch.ones(32))]},
    "other scales in the second half": lambda w: w | {"halves": [w["halves"][0], (w["halves"][0][0], torch.ones(1))]},
    "a short bias": lambda w: w | {"bias": torch.zeros(31)},
    "a bias of whole numbers": lambda w: w | {"bias": torch.zeros(32, dtype=torch.long)},
    "short scales of columns": lambda w: w | {"column": torch.ones(31)},
    "on another device": lambda w: w | {"bias": torch.zeros(32, device="meta")},
}


def small_encoder(engine):
    """An encoder without weights, and those of one Linear that fit."""
    linear = make_linear(32, 32, 1, False, True, torch.Generator().manual_seed(0))
    weights = {"layer": 0, "name": "query", "halves": linear.halves(), "bits": 1, "bias": None}
    return NativeEncoder(engine, EncoderShape(1, 32, 4, 8, 64, 1e-12)), weights


@pytest.mark.parametrize("wrong", WRONG)
def test_weights_of_another_shape_or_type_are_refused(engine, wrong):
    native, weights = small_encoder(engine)
    with pytest.raises(ValueError, match=r"not fit|different scales"):
        native.set_linear(**WRONG[wrong](weights))


def test_weights_that_are_missing_or_too_many_are_refused(engine):
    native, weights = small_encoder(engine)
    native.set_linear(**weights)
    with pytest.raises(ValueError, match="some are missing"):
        native.finish()
    for bits, count in ((3, 1), (2, 2), (1, 3)):
        with pytest.raises(ValueError, match=f"{count} halves of {bits} bits"):
            native.set_linear(**weights | {"halves": weights["halves"] * count, "bits": bits})
    with pytest.raises(ValueError, match="a norm of layer 0"):
        native.set_norm(0, 0, torch.ones(32), torch.zeros(31))


def test_inputs_of_another_shape_or_type_are_refused(engine):
    native, _ = small_encoder(engine)
    for hidden in (torch.zeros(4, 31), torch.zeros(3, 32), torch.zeros(4, 32).double()):
        with pytest.raises(ValueError, match="the hidden states"):
            native.forward(hidden, [0, 4])
    with pytest.raises(ValueError, match="not contiguous"):
        native.forward(torch.zeros(32, 4).t(), [0, 4])
    with pytest.raises(ValueError, match="the input of down"):
        native.linear(0, "down", torch.zeros(4, 32))
