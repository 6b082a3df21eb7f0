"""Scales of columns, learned scales, four levels, and words of 4 and 8 bits."""

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from bitkd.errors import InputError
from bitkd.quant.functional import (
    binary_codes,
    binary_codes_at,
    codes_of_4_bits,
    codes_of_8_bits,
    column_scales_of,
    four_level_codes,
    four_level_codes_at,
    ternary_codes,
    ternary_codes_at,
)
from bitkd.quant.modules import QuantEmbedding, QuantLinear
from bitkd.quant.pairs import SplitLinear
from bitkd.quant.product import temper
from bitkd.quant.reuse import hold_codes
from bitkd.quant.spec import QuantSpec
from bitkd.quant.splitting import split_layers
from bitkd.quant.swap import find_mismatch, swap_layers

ROWS, COLUMNS = 12, 24


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def weights(seed: int = 1, rows: int = ROWS, columns: int = COLUMNS) -> Tensor:
    """Rows and columns of unequal size."""
    w = noise(rows, columns, seed=seed) * 0.1
    return w * noise(rows, 1, seed=seed + 1).abs().add(0.2) * noise(columns, seed=seed + 2).abs().add(0.2)


def linear(seed: int = 1, rows: int = ROWS, columns: int = COLUMNS, **settings) -> QuantLinear:
    layer = QuantLinear(columns, rows, **settings)
    with torch.no_grad():
        layer.weight.copy_(weights(seed, rows, columns))
        layer.bias.copy_(noise(rows, seed=seed + 3))
    if layer.learned_scales:
        layer.start_scales()
    return layer


def error(w: Tensor, values: Tensor) -> float:
    return float((w - values).square().sum() / w.square().sum())


def same(one: Tensor, other: Tensor, tolerance: float = 0.0) -> None:
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_four_levels_by_hand() -> None:
    w = torch.tensor([[0.1, -0.2, 0.3, -1.8]])
    # mean|w| = 0.6, so codes are taken at 0.4: beyond 0.8 they are 3; Σ|code||w| / Σ code² = (0.6 + 5.4) / 12
    codes, scale = four_level_codes(w)
    same(codes, torch.tensor([[1.0, -1.0, 1.0, -3.0]]))
    same(scale, torch.tensor(0.5), 1e-7)
    rows, scales = four_level_codes(torch.cat([w, 10 * w]), per_row=True)
    same(rows, codes.expand(2, 4))
    same(scales, torch.tensor([[0.5], [5.0]]), 1e-6)


@pytest.mark.parametrize(("codes_of", "largest"), [(codes_of_4_bits, 7), (codes_of_8_bits, 127)])
def test_words_by_hand(codes_of, largest) -> None:
    w = torch.tensor([[1.0, -0.4, 0.26], [0.0, 0.0, 0.0]])
    codes, scale = codes_of(w, True)
    same(scale, torch.tensor([[1 / largest], [0.0]]), 1e-7)
    same(codes, torch.tensor([[largest, round(-0.4 * largest), round(0.26 * largest)], [0, 0, 0]]).float())


@pytest.mark.parametrize("codes_of", [binary_codes, ternary_codes, four_level_codes, codes_of_4_bits, codes_of_8_bits])
@pytest.mark.parametrize("per_row", [False, True])
def test_zero_groups_stay_zero(codes_of, per_row) -> None:
    w = weights()
    w[3] = 0
    for chosen in (w, torch.zeros_like(w)):
        codes, scale = codes_of(chosen, per_row)
        values = codes * scale
        assert values.isfinite().all()
        assert not per_row or not values[3].any()
    assert not values.any()


def test_each_finer_quantizer_errs_less() -> None:
    w = weights(rows=96, columns=64)
    column = column_scales_of(w)
    errors = {
        name: error(w, codes * scale * (1 if over is None else over))
        for name, (codes, scale), over in (
            ("matrix", binary_codes(w), None),
            ("row", binary_codes(w, True), None),
            ("row x column", binary_codes(w / column, True), column),
            ("ternary", ternary_codes(w, True), None),
            ("four levels", four_level_codes(w, True), None),
            ("four levels x column", four_level_codes(w / column, True), column),
            ("4 bits", codes_of_4_bits(w, True), None),
            ("8 bits", codes_of_8_bits(w, True), None),
        )
    }
    assert list(errors.values()) == sorted(errors.values(), reverse=True), errors


def test_column_scales_are_close_to_the_best_product_of_two_vectors() -> None:
    w = weights(rows=96, columns=64)
    left, values, right = torch.linalg.svd(w.abs())
    best = error(w.abs(), values[0] * left[:, :1] @ right[:1])
    column = column_scales_of(w)
    same(column.mean(), torch.tensor(1.0), 1e-6)
    codes, scale = binary_codes(w / column, True)
    assert best <= error(w, codes * scale * column) < best * 1.05


@pytest.mark.parametrize("codes_at", [ternary_codes_at, four_level_codes_at])
def test_learned_codes_are_the_nearest_levels(codes_at) -> None:
    levels = torch.tensor([-1.0, 0, 1] if codes_at is ternary_codes_at else [-3.0, -1, 1, 3])
    w, scale = noise(8, 40, seed=3), torch.rand(8, 1, generator=torch.Generator().manual_seed(1)) + 0.3
    codes, _ = codes_at(w, scale)
    distances = (w[..., None] - levels * scale[..., None]).abs()
    same(codes, levels[distances.argmin(-1)])


GRANULARITIES = [{}, {"per_row": True}, {"per_row": True, "column_scales": True}]
LEARNED = [settings | {"learned_scales": True} for settings in GRANULARITIES]
WIDTHS = [{"weight_bits": 1}, {"weight_bits": 2}, {"weight_bits": 2, "levels": 4}]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("settings", GRANULARITIES + LEARNED)
@pytest.mark.parametrize("bits", [8, 32])
def test_linear_is_the_product_with_its_quantized_weight(width, settings, bits) -> None:
    layer = linear(activation_bits=bits, **width, **settings)
    codes, scale, column = layer.quantized()
    x = noise(3, 5, COLUMNS, seed=9)
    scaled = x if column is None else x * column
    expected = nn.functional.linear(layer.input_quantizer(scaled), codes * scale, layer.bias)
    same(layer(x), expected, 1e-5)
    if bits == 32:
        same(layer(x), nn.functional.linear(x, layer.dequantized(), layer.bias), 1e-5)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("settings", GRANULARITIES)
def test_weights_get_the_gradient_of_their_quantized_values(width, settings) -> None:
    layer = linear(activation_bits=32, **width, **settings)
    x = noise(4, 5, COLUMNS, seed=9).requires_grad_()
    upstream = noise(4, 5, ROWS, seed=10)
    found = torch.autograd.grad(layer(x), [x, layer.weight, layer.bias], upstream)
    values = layer.dequantized().requires_grad_()
    expected = torch.autograd.grad(nn.functional.linear(x, values, layer.bias), [x, values, layer.bias], upstream)
    for ours, theirs in zip(found, expected, strict=True):
        same(ours, theirs, 1e-4)


@pytest.mark.parametrize("settings", LEARNED)
def test_gradients_of_binary_scales_are_finite_differences(settings) -> None:
    layer = linear(weight_bits=1, activation_bits=32, **settings).double()
    x, upstream = (noise(4, 5, n, seed=n, dtype=torch.float64) for n in (COLUMNS, ROWS))
    scales = [p for p in (layer.weight_scale, layer.column_scale) if p is not None]
    found = torch.autograd.grad(layer(x), scales, upstream)

    def loss() -> float:
        return float((layer(x) * upstream).sum())

    for scale, gradient in zip(scales, found, strict=True):
        factor = temper(ROWS if scale is layer.column_scale else ROWS * COLUMNS // scale.numel())
        place = (0,) * scale.dim()
        with torch.no_grad():
            middle = scale[place].item()
            losses = []
            for shift in (1e-4, -1e-4):
                scale[place] = middle + shift
                losses.append(loss())
            scale[place] = middle
        assert gradient[place].item() == pytest.approx((losses[0] - losses[1]) / 2e-4 * factor, rel=1e-6)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_gradient_of_a_column_scale_is_that_of_its_input(width) -> None:
    layer = linear(activation_bits=32, per_row=True, column_scales=True, learned_scales=True, **width)
    x, upstream = noise(4, 5, COLUMNS, seed=9), noise(4, 5, ROWS, seed=10)
    (found,) = torch.autograd.grad(layer(x), [layer.column_scale], upstream)
    codes, scale, column = layer.quantized()
    (expected,) = torch.autograd.grad(
        nn.functional.linear(x * column.requires_grad_(), codes * scale, layer.bias), [column], upstream
    )
    same(found, expected * temper(ROWS), 1e-4)


def test_steps_that_were_learned_for_other_inputs_are_not_kept() -> None:
    layer = linear(activation_bits=4, per_row=True)
    layer.input_quantizer.start(torch.tensor(0.5))
    settings = {"activation_bits": 4, "per_row": True}
    assert QuantLinear.from_float(layer, **settings).input_quantizer is layer.input_quantizer
    assert not QuantLinear.from_float(layer, **settings, column_scales=True).input_quantizer.calibrated


@pytest.mark.parametrize("codes_at", [binary_codes_at, ternary_codes_at, four_level_codes_at])
def test_slope_is_that_of_straight_through_rounding(codes_at) -> None:
    w, scale = noise(4, 9, seed=2), torch.full((4, 1), 0.3)
    codes, slope = codes_at(w, scale)
    reach = {binary_codes_at: 0, ternary_codes_at: 1, four_level_codes_at: 4}[codes_at]
    inside = (w / scale).abs() <= reach
    assert codes_at is binary_codes_at or (inside.any() and (~inside).any())
    same(slope[inside], (codes - w / scale)[inside], 1e-6)
    same(slope[~inside], codes[~inside])


def test_learned_scales_start_where_they_are_computed_and_stay_positive() -> None:
    plain = linear(weight_bits=1, activation_bits=8, per_row=True, column_scales=True)
    learned = linear(weight_bits=1, activation_bits=8, per_row=True, column_scales=True, learned_scales=True)
    x = noise(4, 5, COLUMNS, seed=9)
    same(learned(x), plain(x))
    with torch.no_grad():
        learned.weight_scale[0], learned.column_scale[0] = -1.0, -1.0
    assert learned(x).isfinite().all()
    _, scale, column = learned.quantized()
    assert scale.min() > 0
    assert column.min() > 0


@pytest.mark.parametrize("settings", GRANULARITIES + LEARNED)
def test_held_codes_follow_scales(settings) -> None:
    layer = linear(weight_bits=1, activation_bits=8, **settings)
    x, fresh = noise(4, COLUMNS, seed=9), copy.deepcopy(layer)
    hold_codes(layer)
    for parameter in [p for p in (*layer.parameters(),) if p.dim()]:
        with torch.no_grad():
            parameter.mul_(1.5)
            dict(fresh.named_parameters())[next(n for n, p in layer.named_parameters() if p is parameter)].mul_(1.5)
            same(layer(x), fresh(x))
            same(layer(x), fresh(x))


@pytest.mark.parametrize("settings", GRANULARITIES)
@pytest.mark.parametrize("bits", [8, 32])
def test_split_is_ternary(settings, bits) -> None:
    model = nn.Sequential(linear(weight_bits=2, activation_bits=bits, **settings)).eval()
    x = noise(6, COLUMNS, seed=9)
    before = model(x)
    split_layers(model)
    assert isinstance(model[0], SplitLinear)
    assert model[0].column_scales == settings.get("column_scales", False)
    # The halves' scale of columns is that of their sum, which is the weight up to rounding.
    same(model(x), before, 2e-2 if settings.get("column_scales") and bits == 8 else 1e-5)


@pytest.mark.parametrize("learned", [False, True])
def test_pair_trains_with_scales_of_its_own(learned) -> None:
    model = nn.Sequential(linear(weight_bits=2, activation_bits=8, per_row=True, column_scales=True))
    split_layers(model)
    pair = SplitLinear.from_pair(
        model[0], activation_bits=8, per_row=True, column_scales=True, learned_scales=learned, ste_clip=None
    )
    x = noise(4, 5, COLUMNS, seed=9)
    same(pair(x), model(x), 1e-6)
    pair(x).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in pair.parameters())
    assert (pair.column_scale is not None) == learned
    again = SplitLinear.from_pair(
        pair, activation_bits=8, per_row=True, column_scales=True, learned_scales=learned, ste_clip=None
    )
    assert again.column_scale is pair.column_scale
    assert again.first.weight_scale is pair.first.weight_scale


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight_bits": 2, "learned_scales": True}, "a ternary layer with learned scales cannot be split"),
        ({"weight_bits": 2, "levels": 4}, "no ternary layer to split"),
    ],
)
def test_what_cannot_be_split(settings, message) -> None:
    with pytest.raises(InputError, match=message):
        split_layers(nn.Sequential(linear(**settings)))


def test_four_levels_and_words_in_a_table() -> None:
    table = nn.Embedding(9, 16)
    rows = torch.arange(9)
    for settings in ({"weight_bits": 2, "levels": 4}, {"weight_bits": 4}, {"weight_bits": 8}):
        layer = QuantEmbedding.from_float(table, **settings)
        codes, scale = layer.weight_codes(table.weight, True)
        same(layer(rows), codes * scale)
        (gradient,) = torch.autograd.grad(layer(rows).sum(), layer.weight)
        same(gradient, torch.ones_like(gradient))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight_bits": 4}, r"weight_bits=4 is unsupported; use 1 \(binary\), 2 \(ternary\) or 32"),
        ({"levels": 5, "weight_bits": 2}, "levels=5 is unsupported; use 3"),
        ({"levels": 4, "weight_bits": 1}, "levels=4 with 1-bit weights is unsupported"),
        ({"column_scales": True, "weight_bits": 1}, "column_scales=true needs per_row=true"),
        ({"learned_scales": True}, "learned_scales=true with weight_bits=32 has no weights to scale"),
        (
            {"forward_clip": True, "ste_clip": 2.5, "weight_bits": 2, "learned_scales": True},
            "forward_clip=true with learned_scales=true is unsupported",
        ),
    ],
)
def test_spec_refuses(settings, message) -> None:
    with pytest.raises(InputError, match=message):
        QuantSpec(**settings)


FULL = {"weight_bits": 1, "activation_bits": 8, "per_row": True, "column_scales": True, "learned_scales": True}


def tiny() -> BertModel:
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 40,
    }
    return BertModel(BertConfig(**sizes))


def test_swapped_model_keeps_learned_scales_and_knows_its_spec() -> None:
    spec = QuantSpec(**FULL, embedding_bits=4)
    model = swap_layers(tiny(), spec)
    assert find_mismatch(model, spec) is None
    kept = {name: p for name, p in model.named_parameters() if name.endswith("_scale")}
    assert len(kept) == 2 * 6 * model.config.num_hidden_layers
    again = dict(swap_layers(model, QuantSpec(**FULL, embedding_bits=4)).named_parameters())
    assert all(again[name] is parameter for name, parameter in kept.items())
    for field in ("column_scales", "learned_scales"):
        other = QuantSpec(**(FULL | {field: False}), embedding_bits=4)
        assert f"has {field}=True, not False" in (find_mismatch(model, other) or "")
    assert find_mismatch(swap_layers(model, QuantSpec()), QuantSpec()) is None
    assert not any(name.endswith("_scale") for name, _ in model.named_parameters())
