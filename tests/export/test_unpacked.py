"""A student as a plain checkpoint gives the student's own logits, activations aside."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification, DistilBertConfig, ModernBertConfig, MPNetConfig

from bitkd.export.unpacked import make_stock
from bitkd.models.prepare import prepare, split_ternary_
from bitkd.models.spec import ShapeSpec
from bitkd.models.student import build_student
from bitkd.quant.spec import QuantSpec
from bitkd.quant.swap import unquantized_activations
from tests.models.conftest import SHAPE, batch, classifier, importance_of

FAMILIES = {
    "bert": None,
    "distilbert": DistilBertConfig(
        vocab_size=60, dim=32, n_layers=4, n_heads=4, hidden_dim=64, max_position_embeddings=40, num_labels=3
    ),
    "mpnet": MPNetConfig(**SHAPE),
    "modernbert": ModernBertConfig(
        **SHAPE, pad_token_id=0, bos_token_id=None, eos_token_id=None, cls_token_id=None, sep_token_id=None
    ),
}


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("width", [1.0, 0.5])
@pytest.mark.parametrize("per_row", [False, True])
def test_the_logits_are_the_students_with_unquantized_activations(family, width, per_row, tmp_path):
    source = classifier(FAMILIES[family])
    student = build_student(source, ShapeSpec(width=width, layers=[0, 2]), importance_of(source)).eval()
    prepare(student, QuantSpec(weight_bits=2, activation_bits=8, per_row=per_row, attention_activations=True))
    for split in (False, True):
        if split:
            split_ternary_(student)
        with unquantized_activations(student):
            expected = logits(student, batch())
        make_stock(student).save_pretrained(tmp_path)
        stock, report = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        torch.testing.assert_close(logits(stock.eval(), batch()), expected, rtol=1e-5, atol=1e-5)
