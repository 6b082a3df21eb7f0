import pytest
import torch
from torch import Tensor, nn

from bitkd.errors import InputError
from bitkd.quant.functional import binarize, binary_codes, ternarize, ternary_codes
from bitkd.quant.modules import QuantEmbedding, QuantLinear
from bitkd.quant.pairs import SplitEmbedding, SplitLinear
from bitkd.quant.splitting import split_layers, split_ternary

SPIKE = torch.tensor([[1.0] + 383 * [0.006]])
"""The published a is -0.65 here."""


def groups(name: str) -> Tensor:
    torch.manual_seed(0)
    normal = torch.randn(24, 384) * 0.02
    made = {
        "gaussian": normal,
        "heavy": torch.distributions.StudentT(torch.tensor(1.2)).sample((24, 384)),
        "positive": normal.abs() + 0.001,
        "negative": -normal.abs() - 0.001,
        "spikes": torch.where(torch.rand(24, 384) < 0.005, 1.0, 0.006),
        "negative spikes": torch.where(torch.rand(24, 384) < 0.005, -1.0, -0.006),
        "sparse": torch.where(torch.rand(24, 384) < 0.02, normal, 0.0),
        "one spike": SPIKE,
        "constant": torch.full((3, 384), -0.3),
        "zeros": torch.zeros(3, 384),
        "with a zero row": torch.cat([normal[:2], torch.zeros(1, 384)]),
        "single column": normal[:, :1],
    }
    return made[name]


NAMES = ["gaussian", "heavy", "positive", "negative", "spikes", "sparse", "constant", "zeros"]
NAMES += ["negative spikes", "one spike", "with a zero row", "single column"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("per_row", [False, True])
def test_laws_in_float64(name: str, per_row: bool) -> None:
    w = groups(name).double()
    first, second = split_ternary(w, per_row)
    torch.testing.assert_close(first + second, w, rtol=0, atol=1e-12)
    both = binarize(first, per_row) + binarize(second, per_row)
    torch.testing.assert_close(both, ternarize(w, per_row), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("per_row", [False, True])
def test_fp32_halves_have_exactly_half_the_scale(name: str, per_row: bool) -> None:
    w = groups(name)
    first, second = split_ternary(w, per_row)
    assert first.dtype == second.dtype == torch.float32
    codes, alpha = ternary_codes(w, per_row)
    (c1, a1), (c2, a2) = binary_codes(first, per_row), binary_codes(second, per_row)
    assert torch.equal(2 * a1, alpha)
    assert torch.equal(2 * a2, alpha)
    real = alpha.expand_as(codes) > 0
    assert torch.equal((c1 + c2)[real], 2 * codes[real])
    torch.testing.assert_close(first + second, w, rtol=1e-6, atol=1e-7 * w.abs().max().item())


def test_published_assignment_where_it_holds() -> None:
    # threshold 0.7 * 8 / 5 = 1.12; I = {3, -3}, alpha = 3, Z = {1, -0.5, 0.5}
    w = torch.tensor([[3.0, -3.0, 1.0, -0.5, 0.5]])
    a = (6 + 0.5 - 1.5) / 12
    b = (5 * 3 - 8) / 6
    first, second = split_ternary(w.double())
    expected = torch.tensor([[3 * a, -3 * a, 1 + b, b, 0.5 + b]]).double()
    torch.testing.assert_close(first, expected)
    torch.testing.assert_close(second, w - expected)


def test_skewed_row_is_dealt_out() -> None:
    first, second = split_ternary(SPIKE)
    assert 0.15 < first[0, 0].item() < 0.85
    assert torch.equal(binarize(first) + binarize(second), ternarize(SPIKE))


@pytest.mark.parametrize("skew", [1e-9, 1e-5, -1e-9, -1e-5])
def test_border_of_the_published_formula(skew: float) -> None:
    """Z's positive elements weigh as much as I: a is close to 0, or to 1 for the mirrored row."""
    row = torch.cat([torch.tensor([1.0]), torch.full((99,), (1 + skew) / 99)]).double()[None]
    for w in (row, row.float(), torch.cat([row[:, :1], -row[:, 1:]], dim=1)):
        first, second = split_ternary(w)
        both = binary_codes(first)[0] + binary_codes(second)[0]
        assert torch.equal(both, 2 * ternary_codes(w)[0])


def test_split_model_replaces_ternary_layers_only() -> None:
    table = QuantEmbedding(7, 8, weight_bits=2)
    layers = [table, QuantLinear(8, 8, weight_bits=2, activation_bits=8, per_row=True, ste_clip=2.5)]
    model = nn.Sequential(*layers, QuantLinear(8, 4, weight_bits=1), nn.Linear(4, 2)).eval()
    layers[1].weight.requires_grad_(False)
    bias = layers[1].bias
    assert split_layers(model) == 2
    embedding, linear, binary, plain = model
    assert isinstance(embedding, SplitEmbedding)
    assert isinstance(linear, SplitLinear)
    assert type(binary) is QuantLinear
    assert type(plain) is nn.Linear
    assert linear.activation_bits == 8
    assert linear.input_quantizer is layers[1].input_quantizer
    for half in (linear.first, linear.second):
        assert (half.weight_bits, half.per_row, half.ste_clip) == (1, True, 2.5)
        assert torch.equal(half.bias, bias / 2)
        assert not half.weight.requires_grad
        assert half.bias.requires_grad
    assert not any(module.training for module in model.modules())


def test_nothing_to_split() -> None:
    model = nn.Sequential(QuantLinear(8, 8, weight_bits=2))
    split_layers(model)
    with pytest.raises(InputError, match="already split"):
        split_layers(model)
    with pytest.raises(InputError, match=r"no ternary layer to split; prepare\(model"):
        split_layers(nn.Sequential(nn.Linear(2, 2), QuantLinear(2, 2, weight_bits=1)))


def test_weights_that_are_clipped_forward_are_split_and_exported_as_they_are_quantized() -> None:
    """By hand: clipped to 2.5, the mean is 7.0 / 4, the threshold 1.225, and the scale (2.5 + 2.5 + 1.5) / 3."""
    layer = QuantLinear(4, 1, bias=False, weight_bits=2, ste_clip=2.5, forward_clip=True)
    plain = QuantLinear(4, 1, bias=False, weight_bits=2, ste_clip=2.5)
    for one in (layer, plain):
        one.weight.data = torch.tensor([[8.0, -4.0, 1.5, 0.5]])
    x = torch.eye(4)
    scale = 6.5 / 3
    torch.testing.assert_close(layer(x)[:, 0], torch.tensor([scale, -scale, scale, 0.0]))
    # Not clipped: the mean is 3.5, the threshold 2.45, the scale 6.
    torch.testing.assert_close(plain(x)[:, 0], torch.tensor([6.0, -6.0, 0.0, 0.0]))
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.tolist() == [[0, 0, 1, 1]]
    model = nn.Sequential(layer).eval()
    expected = model(x)
    split_layers(model)
    torch.testing.assert_close(model(x), expected)
    halves = model[0].first.weight + model[0].second.weight
    torch.testing.assert_close(halves, torch.tensor([[2.5, -2.5, 1.5, 0.5]]))
