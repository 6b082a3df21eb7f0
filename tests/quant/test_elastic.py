"""Activations of 4, 2 and 1 bits: codes by hand, gradients, and what a layer makes of them."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitkd.errors import InputError
from bitkd.quant.elastic import LEAST_STEP, Elastic
from bitkd.quant.inputs import FullPrecision, PerToken, make_input_quantizer
from bitkd.quant.modules import QuantLinear, SplitLinear, quantizer_for
from bitkd.quant.splitting import split_layers

WIDTHS = [(1, True), (2, True), (4, True), (1, False), (2, False), (4, False)]


def quantizer(bits: int, signed: bool = True, step: float = 0.5, features: int | None = None) -> Elastic:
    made = Elastic(bits, features, signed)
    with torch.no_grad():
        made.step.fill_(step)
    return made


@pytest.mark.parametrize(
    ("bits", "signed", "codes"),
    [  # of x = -9, -0.8, -0.2, -0.0, 0, 0.2, 0.3, 0.8, 1.3, 9 with step 0.5; halves are rounded to even
        (1, True, [-1, -1, -1, 1, 1, 1, 1, 1, 1, 1]),
        (2, True, [-2, -2, 0, 0, 0, 0, 1, 1, 1, 1]),
        (4, True, [-8, -2, 0, 0, 0, 0, 1, 2, 3, 7]),
        (1, False, [0, 0, 0, 0, 0, 0, 1, 1, 1, 1]),
        (2, False, [0, 0, 0, 0, 0, 0, 1, 2, 3, 3]),
        (4, False, [0, 0, 0, 0, 0, 0, 1, 2, 3, 15]),
    ],
)
def test_codes_by_hand(bits: int, signed: bool, codes: list[int]) -> None:
    made = quantizer(bits, signed)
    x = torch.tensor([[-9, -0.8, -0.2, -0.0, 0, 0.2, 0.3, 0.8, 1.3, 9]])
    found, scale = made.codes(x)
    assert found.tolist() == [codes]
    assert (scale.shape, scale.item()) == ((), 0.5)
    assert torch.equal(made(x), torch.tensor([codes]) * 0.5)


@pytest.mark.parametrize(("bits", "signed"), WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_times_scale_are_what_forward_gives_and_all_fit(bits: int, signed: bool, dtype: torch.dtype) -> None:
    made = quantizer(bits, signed, 0.3, features=40)
    with torch.no_grad():
        made.shift.copy_(torch.randn(40, generator=torch.Generator().manual_seed(1)))
    x = torch.randn(900, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):  # codes are FP32 under autocast too
        codes, scale = made.codes(x)
    assert codes.dtype == scale.dtype == torch.float32
    assert made(x).dtype == dtype
    assert torch.equal(made(x), (codes * scale).to(dtype))
    levels = [-1, 1] if bits == 1 and signed else range(made.levels.lowest, made.levels.highest + 1)
    assert codes.unique().tolist() == [*levels]
    moved = x.float() - made.shift
    expected = moved.sign() if bits == 1 and signed else (moved / 0.3).round().clamp(*made.levels[:2])
    assert torch.equal(codes, expected)


@pytest.mark.parametrize(("bits", "signed"), WIDTHS)
def test_gradients_are_those_of_lsq(bits: int, signed: bool) -> None:
    """Against finite differences of a function whose rounding adds the same constant everywhere."""
    torch.manual_seed(0)
    made = quantizer(bits, signed, 0.7, features=6).double()
    x, upstream = torch.randn(5, 6).double().requires_grad_(), torch.randn(5, 6).double()
    found = torch.autograd.grad(made(x), [x, made.step, made.shift], upstream)
    lowest, highest, signs = made.levels
    ratio = (x / made.step).detach()
    inside = ((ratio >= lowest) & (ratio <= highest)).double()
    codes = made.codes(x)[0].double()

    def surrogate(x: Tensor, step: Tensor, shift: Tensor) -> Tensor:
        if signs:  # what x gets is defined, not the slope of a sign
            return (codes * step + (x - shift) * inside).mul(upstream).sum()
        value = ((x - shift) / step + (codes - ratio)) * inside + codes * (1 - inside)
        return (value * step).mul(upstream).sum()

    inputs = [x.detach(), made.step.detach(), made.shift.detach()]
    for position, gradient in enumerate(found):
        for index in range(inputs[position].numel()):
            moved = [[value.clone() for value in inputs] for _ in range(2)]
            for sign, values in zip((1, -1), moved, strict=True):
                values[position].view(-1)[index] += sign * 1e-6
            # Of signs, autograd defines what x gets: 1 inside ±step.
            slope = float(surrogate(*moved[0]) - surrogate(*moved[1])) / 2e-6 * (made.factor if position == 1 else 1)
            assert gradient.reshape(-1)[index].item() == pytest.approx(slope, rel=1e-4, abs=1e-5)


def test_the_steps_gradient_is_divided_by_features_and_levels_and_not_by_tokens() -> None:
    assert Elastic(4, 25).factor == pytest.approx((25 * 7) ** -0.5)
    assert Elastic(2, 25, signed=False).factor == pytest.approx((25 * 3) ** -0.5)
    assert Elastic(1, 25).factor == pytest.approx(0.2)
    assert Elastic(4).factor == pytest.approx(7**-0.5)
    made, x = quantizer(2, features=5), torch.randn(3, 5)
    (short,) = torch.autograd.grad(made(x).sum(), made.step)
    (long,) = torch.autograd.grad((made(x.repeat(2, 1)) / 2).sum(), made.step)
    torch.testing.assert_close(short, long)


@pytest.mark.parametrize(("bits", "signed"), WIDTHS)
def test_a_step_below_the_least_is_read_as_the_least_and_gets_out_of_it(bits: int, signed: bool) -> None:
    made = quantizer(bits, signed, -0.2)
    value = made(torch.tensor([[1.0, 0.0]]))
    assert value.tolist()[0][0] == pytest.approx(made.levels.highest * LEAST_STEP)
    (gradient,) = torch.autograd.grad(value.sum(), made.step)
    assert gradient > 0
    assert made(torch.zeros(2, 3)).abs().max() <= LEAST_STEP


def test_a_quantizer_without_a_start_says_what_to_do_and_weights_that_are_loaded_start_it() -> None:
    made = Elastic(2, 3)
    assert not made.calibrated
    for use in (made, made.codes, QuantLinear(3, 2, weight_bits=1, activation_bits=2)):
        with pytest.raises(InputError, match=r"activations of 2 bits .* no start yet; call bitkd\.calibrate\(model, b"):
            use(torch.ones(1, 3))
    made.load_state_dict(quantizer(2, step=-0.1, features=3).state_dict())  # training may end below zero
    assert made.calibrated
    assert copy.deepcopy(made).calibrated
    made(torch.ones(1, 3))


@pytest.mark.parametrize(
    ("bits", "signed", "step"), [(1, True, 3.0), (2, True, 6.0), (4, True, 6 / 7**0.5), (2, False, 6 / 3**0.5)]
)
def test_a_start_is_lsqs_and_of_signs_the_mean(bits: int, signed: bool, step: float) -> None:
    made = Elastic(bits, signed=signed)
    made.start(torch.tensor(3.0))
    assert made.step.item() == pytest.approx(step)
    zero = Elastic(bits, signed=signed)
    zero.start(torch.tensor(0.0))
    assert zero.calibrated
    assert zero(torch.zeros(2)).isfinite().all()


def test_the_mean_magnitude_is_the_best_size_of_signs() -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    made = Elastic(1)
    made.start(x.abs().mean())

    def error(size: float) -> float:
        return float((x - quantizer(1, step=size)(x).detach()).square().sum())

    assert error(made.step.item()) < min(error(made.step.item() * factor) for factor in (0.5, 0.95, 1.05, 2))


@pytest.mark.parametrize(("bits", "signed"), WIDTHS)
@pytest.mark.parametrize("split", [False, True])
def test_a_layer_gets_the_gradient_of_quantize_dequantize(bits: int, signed: bool, split: bool) -> None:
    torch.manual_seed(0)
    layer: Any = QuantLinear(12, 5, weight_bits=2, activation_bits=bits, signed_input=signed)
    layer.input_quantizer.start(torch.tensor(0.6))
    x, upstream = torch.randn(3, 12, requires_grad=True), torch.randn(3, 5)
    before = layer(x)
    weight = torch.mul(*layer.weight_codes(layer.weight))
    if split:
        holder = nn.ModuleList([layer])
        split_layers(holder)
        layer = holder[0]
        assert isinstance(layer, SplitLinear)
        assert torch.equal(layer(x), before)
        assert torch.equal(layer.eval()(x), before)
        layer.train()
    made = layer.input_quantizer
    assert made.signed == layer.signed_input == signed
    expected = torch.autograd.grad(made(x) @ weight.t(), [x, made.step, made.shift], upstream)
    found = torch.autograd.grad(layer(x), [x, made.step, made.shift], upstream)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_quantizer_is_kept_only_for_the_same_width_and_sign() -> None:
    layer = QuantLinear(3, 2, weight_bits=1, activation_bits=2)
    assert quantizer_for(layer, 2) is layer.input_quantizer
    assert quantizer_for(layer, 2, signed=False) is not layer.input_quantizer
    assert quantizer_for(layer, 1) is not layer.input_quantizer
    assert isinstance(quantizer_for(layer, 32, signed=False), FullPrecision)
    eight = QuantLinear(3, 2, weight_bits=1, activation_bits=8, signed_input=False)
    assert quantizer_for(eight, 8, signed=False) is eight.input_quantizer
    assert isinstance(make_input_quantizer(8, 3, False), PerToken)
