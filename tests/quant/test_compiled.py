"""Compiled quantized layers: one graph, and the numbers of the layers as they are."""

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from bitkd.models.prepare import prepare, split_ternary_
from bitkd.quant.spec import QuantSpec


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch warns of its own tracing
@pytest.mark.parametrize(("bits", "split"), [(1, False), (2, True)])
def test_an_encoder_layer_is_one_graph(bits: int, split: bool) -> None:
    """For any length, in training under autocast and in evaluation."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    spec = QuantSpec(weight_bits=bits, activation_bits=8, attention_activations=True, ste_clip=0.05)
    model = prepare(BertForSequenceClassification(config), spec)
    if split:
        split_ternary_(model)
    layer = model.bert.encoder.layer[0]
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for training in (True, False):
        layer.train(training)
        for length in (3, 5):
            x = torch.randn(2, length, 16, requires_grad=True)
            results = []
            for run in (layer, compiled):
                with torch.autocast("cpu", torch.bfloat16, enabled=training):
                    y = run(x)[0]
                results.append([y, *torch.autograd.grad(y.float().square().sum(), [x, *layer.parameters()])])
            for ours, expected in zip(*results, strict=True):
                torch.testing.assert_close(ours, expected, rtol=0, atol=0)
