import copy

import pytest
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraForSequenceClassification,
    ModernBertConfig,
    ModernBertModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from bitkd.errors import InputError
from bitkd.quant.modules import QuantEmbedding, QuantLinear
from bitkd.quant.pairs import SplitEmbedding, SplitLinear
from bitkd.quant.spec import QuantSpec
from bitkd.quant.splitting import split_layers
from bitkd.quant.swap import find_mismatch, make_blank_pairs, swap_layers, unquantized_activations

SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 40,
    "max_position_embeddings": 20,
}
IDS = torch.arange(4, 16).reshape(2, 6)


def bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**SHAPE)).eval()


def counts(model: nn.Module) -> tuple[int, int, int]:
    """QuantLinears, QuantEmbeddings, plain Linears."""
    types = [type(module) for module in model.modules()]
    return types.count(QuantLinear), types.count(QuantEmbedding), types.count(nn.Linear)


@pytest.mark.parametrize(
    ("model", "plain"),
    [
        (bert(), 2),
        (BertModel(BertConfig(**SHAPE)), 1),
        (RobertaForSequenceClassification(RobertaConfig(**SHAPE)), 2),
        (ElectraForSequenceClassification(ElectraConfig(**SHAPE, embedding_size=16)), 2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_families(model, plain: int) -> None:
    names, parameters = list(model.state_dict()), [id(p) for p in model.parameters()]
    assert swap_layers(model, QuantSpec(weight_bits=1, activation_bits=8)) is model
    assert counts(model) == (12, 1, plain)
    assert list(model.state_dict()) == names
    assert [id(p) for p in model.parameters()] == parameters
    model(IDS)[0].sum().backward()
    assert model.get_input_embeddings().weight.grad is not None


def test_options() -> None:
    model = bert()
    swap_layers(model, QuantSpec(weight_bits=2, embedding_bits=1, per_row=True, pooler=True, ste_clip=2.5))
    assert counts(model) == (13, 1, 1)
    assert model.get_input_embeddings().weight_bits == 1
    query = model.bert.encoder.layer[0].attention.self.query
    assert (query.weight_bits, query.activation_bits, query.per_row, query.ste_clip) == (2, 32, True, 2.5)
    swap_layers(model, QuantSpec(weight_bits=1, embedding_bits=32))
    assert counts(model) == (12, 0, 2)


def test_prepare_again_and_back() -> None:
    model = bert()
    before, logits = dict(model.named_parameters()), model(IDS).logits
    results = []
    for bits in (2, 1, 2):
        swap_layers(model, QuantSpec(weight_bits=bits, activation_bits=8, attention_activations=True))
        assert model.bert.encoder.layer[1].attention.self.activation_quantizer.bits == 8
        results.append(model(IDS).logits)
    torch.testing.assert_close(results[0], results[2], rtol=0, atol=0)
    assert not torch.equal(results[0], results[1])
    swap_layers(model, QuantSpec(weight_bits=32, activation_bits=8))
    assert counts(model) == (12, 0, 2)
    swap_layers(model, QuantSpec())
    assert counts(model) == (0, 0, 14)
    assert not hasattr(model.bert.encoder.layer[1].attention.self, "activation_quantizer")
    torch.testing.assert_close(model(IDS).logits, logits, rtol=0, atol=0)
    for name, parameter in model.named_parameters():
        assert parameter is before[name]


def test_split_shape_takes_a_split_models_weights() -> None:
    spec = QuantSpec(weight_bits=2, activation_bits=8, per_row=True)
    model = swap_layers(bert(), spec)
    assert split_layers(model) == 13
    blank = swap_layers(bert(), QuantSpec(weight_bits=1, activation_bits=8, per_row=True)).eval()
    make_blank_pairs(
        blank, [name for name, module in model.named_modules() if isinstance(module, SplitLinear | SplitEmbedding)]
    )
    assert list(blank.state_dict()) == list(model.state_dict())
    blank.load_state_dict(model.state_dict())
    torch.testing.assert_close(blank(IDS).logits, model(IDS).logits, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("model", "unsigned"),
    [
        (BertModel(BertConfig(**SHAPE, hidden_act="relu")), 2),
        (BertModel(BertConfig(**SHAPE)), 0),
        (
            DistilBertModel(
                DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=32, vocab_size=40, activation="relu")
            ),
            2,
        ),
        (
            ModernBertModel(
                ModernBertConfig(**SHAPE, hidden_activation="relu", pad_token_id=0, global_attn_every_n_layers=1)
            ),
            0,
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_relu_gives_is_quantized_without_negative_codes(model, unsigned: int) -> None:
    swap_layers(model, spec := QuantSpec(weight_bits=1, activation_bits=2))
    linears = {name: module for name, module in model.named_modules() if isinstance(module, QuantLinear)}
    found = [name for name, module in linears.items() if not module.signed_input]
    assert len(found) == unsigned
    assert all("output.dense" in name or "lin2" in name for name in found)
    assert find_mismatch(model, spec) is None
    assert all(module.input_quantizer.shift.numel() == module.in_features for module in linears.values())
    if found:
        model.config.hidden_act = model.config.activation = "gelu"
        assert "has signed_input=False, not True" in str(find_mismatch(model, spec))
        assert swap_layers(model, QuantSpec(weight_bits=1, activation_bits=8)) is model
        assert find_mismatch(model, QuantSpec(weight_bits=1, activation_bits=8)) is None


def test_split_model_stays_binary() -> None:
    model = swap_layers(bert(), QuantSpec(weight_bits=2))
    split_layers(model)
    query = model.bert.encoder.layer[0].attention.self.query.first.weight
    swap_layers(model, QuantSpec(weight_bits=1, activation_bits=8))
    layer = model.bert.encoder.layer[0].attention.self.query
    assert isinstance(layer, SplitLinear)
    assert layer.first.weight is query
    assert layer.activation_bits == 8
    assert isinstance(model.get_input_embeddings(), SplitEmbedding)
    for spec in (QuantSpec(), QuantSpec(weight_bits=2), QuantSpec(weight_bits=1, embedding_bits=32)):
        with pytest.raises(InputError, match=r"_bits=\d+ does not fit a split model"):
            swap_layers(model, spec)
    for bits, name in ((2, "bert.pooler.dense"), (1, "bert.pooler.dense"), (2, "bert.encoder.layer.0.output.dense")):
        with pytest.raises(InputError, match=f"{name} cannot be a pair of 1-bit layers"):
            make_blank_pairs(swap_layers(bert(), QuantSpec(weight_bits=bits)), [name])


def test_unquantized_activations() -> None:
    quantized = swap_layers(bert(), QuantSpec(weight_bits=1, activation_bits=8, attention_activations=True))
    weights_only = swap_layers(bert(), QuantSpec(weight_bits=1))
    before = quantized(IDS).logits
    with unquantized_activations(quantized):
        torch.testing.assert_close(quantized(IDS).logits, weights_only(IDS).logits, rtol=0, atol=0)
    torch.testing.assert_close(quantized(IDS).logits, before, rtol=0, atol=0)
    assert not torch.equal(before, weights_only(IDS).logits)
    with pytest.raises(RuntimeError, match="stop"), unquantized_activations(quantized):
        raise RuntimeError("stop")
    assert quantized.bert.encoder.layer[0].attention.self.query.activation_bits == 8


def test_split_logits_equal_ternary_logits() -> None:
    ternary = swap_layers(bert(), QuantSpec(weight_bits=2, activation_bits=8))
    split = copy.deepcopy(ternary)
    split_layers(split)
    with unquantized_activations(ternary), unquantized_activations(split):
        torch.testing.assert_close(split(IDS).logits, ternary(IDS).logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(split(IDS).logits, ternary(IDS).logits, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight_bits": 3}, r"weight_bits=3 is unsupported; use 1 \(binary\), 2 \(ternary\) or 32$"),
        ({"embedding_bits": 16}, "embedding_bits=16 is unsupported"),
        ({"activation_bits": 3}, "activation_bits=3 is unsupported; use 1, 2, 4, 8 or 32"),
        (
            {"weight_bits": 2, "forward_clip": True},
            "forward_clip=true with ste_clip=null and 2-bit weights is unsupported",
        ),
        ({"weight_bits": 1, "ste_clip": 2.5, "forward_clip": True}, "clips 2-bit weights to ±ste_clip, so set both"),
        ({"ste_clip": 0.0}, "ste_clip=0.0 is unsupported; use a positive number"),
    ],
)
def test_spec_refuses(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        QuantSpec(**settings)


def test_prepare_refuses() -> None:
    albert = AlbertModel(AlbertConfig(hidden_size=8, num_attention_heads=2, vocab_size=10))
    with pytest.raises(InputError, match="AlbertModel does not keep its layers as BERT"):
        swap_layers(albert, QuantSpec(weight_bits=1))
    with pytest.raises(InputError, match="Linear does not keep its layers as BERT"):
        swap_layers(nn.Linear(2, 2), QuantSpec(weight_bits=1))
    with pytest.raises(InputError, match="has no pooler"):
        swap_layers(RobertaForSequenceClassification(RobertaConfig(**SHAPE)), QuantSpec(weight_bits=1, pooler=True))
