"""What is not computed twice: inputs that several layers read, and the codes of weights that do not change."""

import copy
import gc
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitkd.quant import inputs, reuse
from bitkd.quant.inputs import PerToken, token_codes
from bitkd.quant.modules import QuantLinear
from bitkd.quant.pairs import SplitLinear
from bitkd.quant.reuse import hold_codes, release_codes


class Projections(nn.Module):
    """Queries, keys and values of one input, as in self-attention."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        settings = {"weight_bits": 1, "activation_bits": 8} | settings
        self.parts = nn.ModuleList(QuantLinear(8, 6, **settings) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.parts], -1)


@pytest.fixture
def quantized(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The inputs that were quantized."""
    seen: list[Tensor] = []

    def count(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        seen.append(x)
        return token_codes(x, bits)

    monkeypatch.setattr(inputs, "token_codes", count)
    return seen


def results(run: Callable[[Tensor], Tensor], x: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    leaf = x.clone().requires_grad_()
    y = run(leaf)
    return [y, *torch.autograd.grad(y.float().square().sum(), [leaf, *parameters])]


def exactly(a: list[Tensor], b: list[Tensor]) -> None:
    for ours, expected in zip(a, b, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_that_read_one_tensor_quantize_it_once(quantized: list[Tensor], dtype: torch.dtype) -> None:
    """And compute the very numbers of layers that each quantize it."""
    model, x = Projections(), torch.randn(2, 5, 8)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
        shared = results(model, x, list(model.parameters()))
        assert len(quantized) == 1
        alone = results(lambda x: torch.cat([p(x * 1) for p in model.parts], -1), x, list(model.parameters()))
        assert len(quantized) == 4
    exactly(shared, alone)


def test_an_input_is_quantized_again_when_it_may_have_changed(quantized: list[Tensor]) -> None:
    query, key, value = Projections().parts
    x = torch.randn(2, 8)
    query(x), query(x)  # the same layer again: another forward pass
    assert len(quantized) == 2
    key(x.add_(1))
    assert len(quantized) == 3
    with torch.autocast("cpu", torch.bfloat16):
        value(x)
    assert len(quantized) == 4
    with torch.inference_mode():  # counts no changes
        still = torch.randn(2, 8)
        query(still), key(still)
    assert len(quantized) == 6


def test_layers_share_only_equal_quantizers_without_state(quantized: list[Tensor]) -> None:
    class Own(PerToken):
        pass

    query, key, value = Projections().parts
    key.input_quantizer, value.input_quantizer = PerToken(4), Own(8)
    x = torch.randn(2, 8)
    for layer in (query, key, value):
        layer(x)
    assert len(quantized) == 3


def test_a_shared_input_goes_with_the_tensor() -> None:
    x = torch.randn(2, 8)
    Projections()(x)
    assert reuse._LAST.found is not None
    held = reuse._LAST.found.result
    assert held
    del x
    gc.collect()
    assert not held


@pytest.mark.parametrize("split", [False, True])
def test_held_codes_change_no_number(split: bool) -> None:
    """Over micro-batches, a step of the optimizer, and evaluation in between."""

    def run(hold: bool) -> list[Tensor]:
        torch.manual_seed(0)
        layers = [QuantLinear(8, 6, weight_bits=1, activation_bits=8, per_row=True, ste_clip=0.3) for _ in range(2)]
        model = nn.Sequential(SplitLinear(*layers) if split else layers[0], nn.Linear(6, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        found = []
        if hold:
            hold_codes(model)
        for step in range(4):
            found += results(model, torch.randn(3, 8), list(model.parameters()))
            model(torch.randn(3, 8)).sum().backward()
            with torch.inference_mode():
                found.append(model.eval()(torch.randn(3, 8)))
            model.train()
            if step % 2:
                optimizer.step()
        return [tensor.clone() for tensor in found]

    exactly(run(True), run(False))


def test_a_held_weight_is_quantized_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Projections()
    calls = []
    for part in model.parts:
        codes_of = part.weight_codes
        monkeypatch.setattr(part, "weight_codes", lambda *args, codes_of=codes_of: calls.append(1) or codes_of(*args))
    x = torch.randn(2, 8)
    hold_codes(model)
    model(x), model(x)
    assert len(calls) == 3
    other = copy.deepcopy(model.parts[0])
    assert other.held is None
    release_codes(model)
    model(x)
    assert len(calls) == 6


def test_copies_and_pickles_hold_nothing() -> None:
    model = Projections()
    hold_codes(model)
    model(torch.randn(2, 8))
    assert [part.held for part in pickle.loads(pickle.dumps(model)).parts] == [None] * 3
    release_codes(model)
    assert [part.held for part in model.parts] == [None] * 3
    assert list(model.state_dict()) == list(Projections().state_dict())
