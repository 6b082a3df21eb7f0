import copy
import itertools
import pickle

import pytest
import torch
from torch import Tensor, nn

from bitkd.quant.functional import binarize, binary_codes, quantize_tokens, ternarize, ternary_codes, token_codes
from bitkd.quant.modules import QuantEmbedding, QuantLinear
from bitkd.quant.pairs import SplitEmbedding, SplitLinear
from bitkd.quant.splitting import split_layers


def inputs(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def linear(seed: int = 1, rows: int = 12, columns: int = 24, **settings) -> QuantLinear:
    layer = QuantLinear(columns, rows, **settings)
    with torch.no_grad():
        layer.weight.copy_(inputs(rows, columns, seed=seed) * 0.1)
        layer.bias.copy_(inputs(rows, seed=seed + 1))
    return layer


def exactly(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def reference(x: Tensor, layer: QuantLinear) -> Tensor:
    """The usual quantize-dequantize form, differentiated by autograd."""
    quantize = {1: binarize, 2: ternarize}.get(layer.weight_bits)
    weight = quantize(layer.weight, layer.per_row, clip=layer.ste_clip) if quantize else layer.weight
    return nn.functional.linear(layer.input_quantizer(x), weight, layer.bias)


@pytest.mark.parametrize(
    ("weight_bits", "activation_bits", "per_row", "clip"),
    [*itertools.product([1, 2], [8, 32], [False, True], [None, 0.1]), (32, 8, False, None), (32, 32, False, None)],
)
def test_linear_equals_quantize_dequantize(weight_bits, activation_bits, per_row, clip) -> None:
    layer = linear(weight_bits=weight_bits, activation_bits=activation_bits, per_row=per_row, ste_clip=clip)
    x = inputs(2, 5, 24, seed=7)
    upstream = inputs(2, 5, 12, seed=8)
    results = []
    for forward in (layer, lambda x: reference(x, layer)):
        leaf = x.clone().requires_grad_()
        y = forward(leaf)
        results.append([y, *torch.autograd.grad(y, [leaf, layer.weight, layer.bias], upstream)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weight_bits", [1, 2])
@pytest.mark.parametrize("per_row", [False, True])
def test_linear_equals_integer_execution(weight_bits: int, per_row: bool) -> None:
    layer = linear(rows=7, columns=700, weight_bits=weight_bits, activation_bits=8, per_row=per_row)
    x = inputs(3, 700, seed=5)
    codes, scale = (binary_codes if weight_bits == 1 else ternary_codes)(layer.weight, per_row)
    x_codes, x_scale = token_codes(x)
    products = x_codes.to(torch.int32) @ codes.to(torch.int32).t()
    expected = products.float() * scale.reshape(-1) * x_scale + layer.bias
    exactly(layer(x), expected)


@pytest.mark.parametrize("activation_bits", [8, 32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_linear_under_autocast(activation_bits: int, dtype: torch.dtype) -> None:
    layer = linear(rows=6, columns=900, weight_bits=1, activation_bits=activation_bits)
    x = (inputs(4, 900, seed=3).abs() + 1).requires_grad_()  # all of one sign: the largest sums
    with torch.no_grad():
        layer.weight[0] = 1.0
    plain = layer(x)
    with torch.autocast("cpu", dtype):
        cast = layer(x)
    assert cast.dtype == dtype
    torch.testing.assert_close(cast.float(), plain, rtol=2e-2, atol=2e-2)
    cast.float().square().mean().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
    assert layer.weight.grad.isfinite().all()


def test_bfloat16_codes_are_exact() -> None:
    layer = linear(rows=1, columns=2, weight_bits=1, activation_bits=8).bfloat16()
    x = torch.tensor([[127.0, 1.0]])
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -1.0]]))
        layer.bias.zero_()
    assert layer(x.bfloat16()).item() == 126


def test_from_float_keeps_parameters_and_random_state() -> None:
    plain, table = nn.Linear(4, 3).eval(), nn.Embedding(9, 4, padding_idx=1)
    state = torch.get_rng_state()
    layer, embedding = QuantLinear.from_float(plain, weight_bits=32), QuantEmbedding.from_float(table, weight_bits=1)
    exactly(torch.get_rng_state(), state)
    assert layer.weight is plain.weight
    assert layer.bias is plain.bias
    assert not layer.training
    exactly(layer(inputs(2, 4)), plain(inputs(2, 4)))
    assert embedding.weight is table.weight
    assert embedding.padding_idx == 1
    assert list(embedding.state_dict()) == list(table.state_dict())
    assert QuantLinear.from_float(nn.Linear(4, 3, bias=False)).bias is None


@pytest.mark.parametrize("weight_bits", [1, 2])
def test_embedding_quantizes_rows(weight_bits: int) -> None:
    embedding = QuantEmbedding(9, 16, padding_idx=0, weight_bits=weight_bits, ste_clip=1.0)
    ids = torch.tensor([[3, 0, 3], [8, 1, 0]])
    quantize = binarize if weight_bits == 1 else ternarize
    exactly(embedding(ids), quantize(embedding.weight, per_row=True)[ids])
    upstream = inputs(2, 3, 16)
    embedding(ids).backward(upstream)
    expected = torch.zeros(9, 16).index_put((ids.flatten(),), upstream.flatten(0, 1), accumulate=True)
    expected = expected.masked_fill(embedding.weight.abs() > 1.0, 0)
    expected[0] = 0
    torch.testing.assert_close(embedding.weight.grad, expected)


def split_of(layer: QuantLinear) -> SplitLinear:
    holder = nn.ModuleList([copy.deepcopy(layer)])
    assert split_layers(holder) == 1
    split = holder[0]
    assert isinstance(split, SplitLinear)
    return split


@pytest.mark.parametrize("activation_bits", [8, 32])
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_fresh_split_equals_ternary_exactly(activation_bits: int, per_row: bool, training: bool) -> None:
    layer = linear(rows=20, columns=96, weight_bits=2, activation_bits=activation_bits, per_row=per_row)
    split = split_of(layer.train(training))
    assert split.training is training
    x = inputs(4, 9, 96, seed=2)
    exactly(split(x), layer(x))


def trained_split(activation_bits: int, per_row: bool) -> SplitLinear:
    split = split_of(linear(rows=20, columns=96, weight_bits=2, activation_bits=activation_bits, per_row=per_row))
    with torch.no_grad():
        split.first.weight.add_(inputs(20, 96, seed=11), alpha=0.1)
        split.second.weight.add_(inputs(20, 96, seed=12), alpha=0.05)
    return split


@pytest.mark.parametrize("per_row", [False, True])
def test_trained_split_equals_integer_execution(per_row: bool) -> None:
    split = trained_split(8, per_row).eval()
    x = inputs(3, 96, seed=5)
    (c1, a1), (c2, a2) = (binary_codes(half.weight, per_row) for half in (split.first, split.second))
    x_codes, x_scale = token_codes(x)
    p1, p2 = (x_codes.to(torch.int32) @ c.to(torch.int32).t() for c in (c1, c2))
    m, d = ((a1 + a2) / 2).reshape(-1), ((a1 - a2) / 2).reshape(-1)
    assert d.abs().min() > 0
    y = (m * (p1 + p2) + d * (p1 - p2)) * x_scale
    exactly(split(x), y + (split.first.bias + split.second.bias))


@pytest.mark.parametrize("activation_bits", [8, 32])
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_split_is_the_sum_of_its_halves(activation_bits: int, per_row: bool, training: bool) -> None:
    split = trained_split(activation_bits, per_row).train(training)
    parameters = list(split.parameters())
    x, upstream = inputs(3, 4, 96, seed=5), inputs(3, 4, 20, seed=6)
    results = []

    def halves(x: Tensor) -> Tensor:
        x = quantize_tokens(x) if activation_bits < 32 else x
        return reference(x, split.first) + reference(x, split.second)

    for forward in (split, halves):
        leaf = x.clone().requires_grad_()
        y = forward(leaf)
        results.append([y, *torch.autograd.grad(y, [leaf, *parameters], upstream)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=2e-5)


def test_split_halves_get_gradients_of_their_own() -> None:
    split = trained_split(8, False)
    split(inputs(2, 96)).sum().backward()
    first, second = split.first.weight.grad, split.second.weight.grad
    assert first is not None
    assert second is not None
    exactly(first, second)
    assert first.data_ptr() != second.data_ptr()


def test_split_of_zeros_is_zero() -> None:
    layer = linear(weight_bits=2, activation_bits=8)
    nn.init.zeros_(layer.weight)
    split = split_of(layer)
    for training in (False, True):
        exactly(split.train(training)(inputs(2, 24)), layer.bias.expand(2, -1))


def test_split_embedding_equals_ternary() -> None:
    holder = nn.ModuleList([QuantEmbedding(11, 32, padding_idx=1, weight_bits=2)])
    ids = torch.arange(11).reshape(1, 11)
    before = holder[0](ids)
    assert split_layers(holder) == 1
    split = holder[0]
    assert isinstance(split, SplitEmbedding)
    exactly(split(ids), before)
    assert (split.num_embeddings, split.embedding_dim, split.padding_idx) == (11, 32, 1)


def test_frozen_weight_gets_no_gradient() -> None:
    layer = linear(weight_bits=1, activation_bits=8)
    layer.weight.requires_grad_(False)
    x = inputs(2, 24).requires_grad_()
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert x.grad is not None


def test_modules_survive_pickle_and_copy() -> None:
    split = trained_split(8, True)
    for other in (pickle.loads(pickle.dumps(split)), copy.deepcopy(split)):
        exactly(other(inputs(2, 96)), split(inputs(2, 96)))


def test_a_single_token_without_batch() -> None:
    layer, x = linear(weight_bits=1, activation_bits=8), inputs(24)
    layer(x).sum().backward()
    exactly(layer(x), layer(x[None])[0])
    torch.testing.assert_close(layer.weight.grad, quantize_tokens(x).expand(12, -1))


def test_a_pair_of_8_bit_layers_reads_8_bit_inputs():
    halves = [QuantLinear(8, 4, weight_bits=1, activation_bits=8) for _ in range(2)]
    x = torch.randn(3, 8)
    expected = halves[0](x) + halves[1](x)
    pair = SplitLinear(*halves)
    assert pair.activation_bits == 8
    torch.testing.assert_close(pair(x), expected)
