"""Compiled quantized layers: one graph for any length, and the numbers of the layers as they are."""

import pytest
import torch
from torch import nn

from bitkd.quant.modules import QuantLinear, SplitLinear


@pytest.mark.parametrize("training", [True, False])
def test_quantized_layers_are_one_graph(training: bool) -> None:
    halves = [QuantLinear(8, 6, weight_bits=1, activation_bits=8) for _ in range(2)]
    layers: nn.Module = SplitLinear(*halves) if not training else QuantLinear(8, 6, weight_bits=1, activation_bits=8)
    layers.train(training)
    compiled = torch.compile(layers, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (3, 5):
        x = torch.randn(2, length, 8, requires_grad=True)
        results = []
        for run in (layers, compiled):
            with torch.autocast("cpu", torch.bfloat16, enabled=training):
                y = run(x)
            results.append([y, *torch.autograd.grad(y.float().square().sum(), [x, *layers.parameters()])])
        for ours, expected in zip(*results, strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=0)


@pytest.mark.parametrize("bits", [1, 2])
def test_layers_that_learn_their_steps_are_one_graph(bits: int) -> None:
    layer = QuantLinear(8, 6, weight_bits=1, activation_bits=bits)
    layer.input_quantizer.start(torch.tensor(0.6))
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (3, 5):
        x = torch.randn(2, length, 8, requires_grad=True)
        results = []
        for run in (layer, compiled):
            y = run(x)
            results.append([y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])])
        for ours, expected in zip(*results, strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=0)
