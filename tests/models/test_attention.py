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
from bitkd.models.attention import SELECTED, additive_mask, can_use_score_attention, use_score_attention
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


@pytest.mark.parametrize("asked", [True, SELECTED])
@pytest.mark.parametrize("gradients", [True, False])
def test_scores_are_given_where_they_are_asked_for_and_change_nothing_else(asked, gradients):
    model = BertModel(BertConfig(**SHAPE)).eval()
    use_score_attention(model, layers=[1])
    with torch.set_grad_enabled(gradients):
        plain = model(IDS, attention_mask=MASK)
        output = model(IDS, attention_mask=MASK, output_attentions=asked)
    assert plain.attentions is None
    torch.testing.assert_close(output[0], plain[0])
    shapes = [tuple(scores.shape) for scores in output.attentions]
    assert shapes == [(2, 2, 6, 6) if asked is True else (0,), (2, 2, 6, 6)]
    model.set_attn_implementation("eager")
    model.config.output_attentions = True
    use_score_attention(model)
    assert all(scores.numel() for scores in model(IDS, attention_mask=MASK).attentions)


def test_a_mask_has_the_type_of_the_scores_and_one_row_for_all_queries():
    for enabled, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            mask = additive_mask(attention_mask=MASK.bool())
        assert mask.dtype == dtype
        assert torch.equal(mask, torch.where(MASK.bool(), 0.0, torch.finfo(dtype).min).to(dtype)[:, None, None])
    assert additive_mask(allow_is_bidirectional_skip=True) is None


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
