import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    ElectraConfig,
    ElectraModel,
    RemBertConfig,
    RemBertModel,
    RobertaConfig,
    RobertaModel,
)

from bitkd.errors import InputError
from bitkd.models.attention import can_use_score_attention, use_score_attention
from bitkd.models.prepare import prepare
from bitkd.quant.spec import QuantSpec

SHAPE = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
}
IDS = torch.arange(5, 17).reshape(2, 6)
MASK = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])


def attentions(model):
    return model(IDS, attention_mask=MASK, output_attentions=True).attentions


@pytest.mark.parametrize(
    "model",
    [
        BertModel(BertConfig(**SHAPE)),
        BertForSequenceClassification(BertConfig(**SHAPE)),
        RobertaModel(RobertaConfig(**SHAPE)),
        ElectraModel(ElectraConfig(**SHAPE)),
    ],
    ids=lambda model: type(model).__name__,
)
def test_a_model_made_without_bitkd_gives_scores_once_asked(model):
    model.eval().set_attn_implementation("eager")
    before, probabilities = model(IDS, attention_mask=MASK)[0], attentions(model)
    for _ in range(2):
        use_score_attention(model)
        for scores, expected in zip(attentions(model), probabilities, strict=True):
            masked = scores.masked_fill(MASK[:, None, None, :] == 0, -torch.inf)
            torch.testing.assert_close(masked.softmax(-1), expected)
            assert not torch.allclose(scores.sum(-1), torch.ones(()), atol=0.1)
    torch.testing.assert_close(model(IDS, attention_mask=MASK)[0], before)


def test_an_encoder_with_attention_of_its_own_is_refused():
    model = RemBertModel(RemBertConfig(**SHAPE))
    assert not can_use_score_attention(model)
    with pytest.raises(InputError, match="RemBertModel computes attention by itself"):
        use_score_attention(model)
    # transformers accepts the name here, although the model never reads it.
    named = RemBertModel._from_config(RemBertConfig(**SHAPE), attn_implementation="bitkd")
    with pytest.raises(InputError, match="RemBertModel computes attention by itself"):
        use_score_attention(named)
    with pytest.raises(InputError, match="RemBertModel computes attention by itself"):
        prepare(named, QuantSpec(weight_bits=1, activation_bits=8, attention_activations=True))
    assert not hasattr(named.config, "bitkd")
    prepare(named, QuantSpec(weight_bits=1))


def test_quantized_attention_is_used_by_a_model_made_without_bitkd():
    spec = QuantSpec(weight_bits=1, activation_bits=8)
    torch.manual_seed(0)
    model = BertModel(BertConfig(**SHAPE)).eval()
    before = prepare(model, spec)(IDS).last_hidden_state
    spec.attention_activations = True
    assert not torch.equal(prepare(model, spec)(IDS).last_hidden_state, before)
