"""Another bit width, or a quantizer that learns, is one class and one row."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from bitkd.errors import InputError
from bitkd.models.attention import ATTENTION
from bitkd.quant.elastic import Elastic
from bitkd.quant.functional import binary_codes, ternary_codes
from bitkd.quant.inputs import InputQuantizer, PerToken
from bitkd.quant.modules import QuantEmbedding, QuantLinear, SplitLinear
from bitkd.quant.spec import QuantSpec
from bitkd.quant.splitting import split_layers
from bitkd.quant.swap import swap_layers, unquantized_activations
from bitkd.quant.table import ACTIVATIONS, WEIGHTS, ActivationQuantizer, WeightQuantizer, is_splittable

IDS = torch.arange(4, 16).reshape(2, 6)


def encoder(spec: QuantSpec) -> Any:
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=40,
        max_position_embeddings=20,
    )
    return swap_layers(BertModel._from_config(config, attn_implementation=ATTENTION).eval(), spec)


def hidden(spec: QuantSpec) -> Tensor:
    return encoder(spec)(IDS).last_hidden_state


@pytest.fixture
def four_bit_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ACTIVATIONS, 4, ActivationQuantizer("bitkd.quant.inputs:PerToken"))


def linear_codes(w: Tensor, per_row: bool = False) -> tuple[Tensor, Tensor]:
    """Symmetric codes -7 … 7."""
    scale = (w.abs().amax(dim=-1, keepdim=True) if per_row else w.abs().max()).detach() / 7
    return (w / scale).round().detach(), scale


@pytest.fixture
def four_bit_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WEIGHTS, 4, WeightQuantizer("4-bit", "linear", linear_codes))


@pytest.mark.usefixtures("four_bit_tokens")
def test_a_row_for_four_bit_tokens_quantizes_linears_and_attention() -> None:
    by_bits = {
        bits: (
            hidden(QuantSpec(weight_bits=1, activation_bits=bits)),
            hidden(QuantSpec(weight_bits=1, activation_bits=bits, attention_activations=True)),
        )
        for bits in (4, 8, 32)
    }
    for position in range(2):
        for other in (8, 32):
            assert not torch.allclose(by_bits[4][position], by_bits[other][position], atol=1e-4)
    assert not torch.allclose(*by_bits[4], atol=1e-4)
    layer = QuantLinear(24, 6, weight_bits=1, activation_bits=4)
    codes, _ = layer.input_quantizer.codes(torch.randn(50, 24))
    assert (codes.min(), codes.max()) == (-7, 7)
    query = encoder(QuantSpec(1, activation_bits=4, attention_activations=True)).encoder.layer[0].attention.self
    assert {child.bits for child in query.activation_quantizer.children()} == {4}


@pytest.mark.usefixtures("four_bit_tokens")
def test_a_four_bit_input_is_multiplied_exactly() -> None:
    layer = QuantLinear(700, 7, weight_bits=2, activation_bits=4)
    x = torch.randn(3, 700, generator=torch.Generator().manual_seed(0))
    (codes, scale), (x_codes, x_scale) = ternary_codes(layer.weight), PerToken(4).codes(x)
    product = x_codes.to(torch.int32) @ codes.to(torch.int32).t()
    assert torch.equal(layer(x), product.float() * scale * x_scale + layer.bias)


@pytest.mark.usefixtures("four_bit_weights")
def test_a_row_for_four_bit_weights_is_neither_binary_nor_ternary() -> None:
    spec = QuantSpec(weight_bits=4, activation_bits=8)
    results = [hidden(QuantSpec(weight_bits=bits, activation_bits=8)) for bits in (1, 2, 4, 32)]
    for other in (0, 1, 3):
        assert not torch.allclose(results[2], results[other], atol=1e-4)
    torch.manual_seed(1)
    layer = QuantLinear(40, 6, weight_bits=4)
    torch.testing.assert_close(layer(torch.eye(40)) - layer.bias, torch.mul(*linear_codes(layer.weight)).t())
    embedding = QuantEmbedding(9, 16, weight_bits=4)
    codes, scale = linear_codes(embedding.weight, per_row=True)
    torch.testing.assert_close(embedding(torch.arange(9)), codes * scale)
    assert not is_splittable(4)
    with pytest.raises(InputError, match="no ternary layer to split"):
        split_layers(encoder(spec))


@pytest.mark.parametrize("bits", [0, 3, 5, 16, 33])
def test_an_unknown_width_is_refused_where_it_is_used(bits: int) -> None:
    weights, activations = rf"={bits} is unsupported; use 1 \(binary\), 2 \(ternary\) or 32", f"={bits} is unsupported"
    words = rf"embedding_bits={bits} is unsupported; use 1 \(binary\), 2 \(ternary\), 4 \(15 levels\), 8 \(255 levels\) or 32"
    for make, message in (
        (lambda: QuantSpec(weight_bits=bits), weights),
        (lambda: QuantSpec(embedding_bits=bits), words),
        (lambda: QuantLinear(2, 2, weight_bits=bits), weights),
        (lambda: QuantEmbedding(2, 2, weight_bits=bits), words),
    ):
        with pytest.raises(InputError, match=message):
            make()
    for make_input in (lambda: QuantSpec(activation_bits=bits), lambda: QuantLinear(2, 2, activation_bits=bits)):
        with pytest.raises(InputError, match=activations):
            make_input()


def test_codes_that_a_product_cannot_hold_are_refused() -> None:
    with pytest.raises(InputError, match=r"PerToken\(16\) is too wide; activations are quantized to at most 8 bits"):
        PerToken(16)


class _Learned(torch.autograd.Function):
    """LSQ (arXiv:1902.08153) without its gradient scale: round(x / step) * step within -7 … 7."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor) -> Tensor:
        ctx.save_for_backward(x, step)
        return (x / step).round().clamp(-7, 7) * step

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, step = ctx.saved_tensors
        ratio = x / step
        inside = ratio.abs() <= 7
        of_step = torch.where(inside, ratio.round() - ratio, ratio.clamp(-7, 7))
        return grad * inside, (grad * of_step).sum()


class LearnedStep(InputQuantizer):
    """A toy of what is to come: one learned step size."""

    def __init__(self, bits: int) -> None:
        super().__init__(bits)
        self.step = nn.Parameter(torch.tensor(0.2))

    @torch.no_grad()
    def codes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return (x.float() / self.step).round().clamp(-7, 7), self.step.detach()

    def forward(self, x: Tensor) -> Tensor:
        return _Learned.apply(x, self.step)


@pytest.fixture
def learned_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ACTIVATIONS, 4, ActivationQuantizer(LearnedStep))


@pytest.mark.usefixtures("learned_step")
@pytest.mark.parametrize("split", [False, True])
def test_a_learned_quantizer_gets_the_gradient_of_quantize_dequantize(split: bool) -> None:
    torch.manual_seed(0)
    layer: Any = QuantLinear(12, 5, weight_bits=2, activation_bits=4)
    weight = torch.mul(*ternary_codes(layer.weight))
    bias = layer.bias.detach().clone()
    if split:
        holder = nn.ModuleList([layer])
        split_layers(holder)
        assert isinstance(holder[0], SplitLinear)
        assert holder[0].input_quantizer is layer.input_quantizer
        layer = holder[0]
    quantizer = layer.input_quantizer
    x, upstream = torch.randn(3, 12, requires_grad=True), torch.randn(3, 5)
    ours = torch.autograd.grad(layer(x), [x, quantizer.step], upstream)
    expected = torch.autograd.grad(nn.functional.linear(quantizer(x), weight, bias), [x, quantizer.step], upstream)
    torch.testing.assert_close(ours, expected)


@pytest.mark.usefixtures("learned_step")
def test_what_a_quantizer_learns_is_part_of_the_model() -> None:
    spec = QuantSpec(weight_bits=2, activation_bits=4, attention_activations=True)
    model = encoder(spec)
    names = [name for name in model.state_dict() if name.endswith("step")]
    assert len(names) == 6 + 4
    model(IDS).last_hidden_state.square().sum().backward()
    assert all(model.get_parameter(name).grad is not None for name in names)
    with torch.no_grad():
        for name in names:
            model.get_parameter(name).mul_(1.5)
    before = model(IDS).last_hidden_state
    assert torch.equal(swap_layers(model, spec)(IDS).last_hidden_state, before)
    copied = encoder(spec)
    copied.load_state_dict(model.state_dict())
    assert torch.equal(copied(IDS).last_hidden_state, before)
    split = copy.deepcopy(model)
    split_layers(split)
    torch.testing.assert_close(split(IDS).last_hidden_state, before)
    assert len([name for name in split.state_dict() if name.endswith("step")]) == len(names)
    with unquantized_activations(model):
        assert not torch.allclose(model(IDS).last_hidden_state, before, atol=1e-4)
    assert torch.equal(model(IDS).last_hidden_state, before)


def test_rows_name_their_implementation_without_torch() -> None:
    assert WEIGHTS[1].resolve() is binary_codes
    assert WEIGHTS[2].resolve() is ternary_codes
    assert ACTIVATIONS[8].resolve() is PerToken
    assert {bits for bits, row in ACTIVATIONS.items() if row.resolve() is Elastic} == {1, 2, 4}
    assert [row.title for row in WEIGHTS.values()] == ["1-bit", "2-bit", "4-bit", "8-bit"]
    assert [bits for bits in (1, 2, 4, 8, 32) if is_splittable(bits)] == [2]
