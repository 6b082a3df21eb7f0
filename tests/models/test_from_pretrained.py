"""Students in transformers' own `from_pretrained`."""

import subprocess
import sys

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, BertForSequenceClassification

from bitkd.errors import InputError
from bitkd.models.artifact import load_student, save_student
from bitkd.models.marks import GUARD
from bitkd.models.packed import save_packed
from bitkd.models.prepare import prepare, split_ternary_
from bitkd.models.spec import ShapeSpec
from bitkd.models.student import build_student
from bitkd.quant.spec import QuantSpec
from tests.models.conftest import batch, classifier, importance_of


def binary():
    return prepare(classifier(), QuantSpec(weight_bits=1, activation_bits=8, attention_activations=True))


def split():
    model = prepare(classifier(), QuantSpec(weight_bits=2, activation_bits=8))
    split_ternary_(model)
    return model


def narrow():
    model = classifier()
    return build_student(model, ShapeSpec(layers=[1, 3], width=0.5), importance_of(model))


def eight_bit_activations():
    return prepare(classifier(), QuantSpec(activation_bits=8))


@pytest.mark.parametrize("make", [binary, split, narrow, eight_bit_activations])
@torch.no_grad()
def test_it_gives_the_logits_of_load_student(make, tmp_path):
    save_student(make(), tmp_path)
    logits = load_student(tmp_path)(**batch()).logits
    for auto in (AutoModelForSequenceClassification, BertForSequenceClassification):
        model = auto.from_pretrained(tmp_path, dtype=torch.float16)
        assert torch.equal(model(**batch()).logits, logits)
        save_student(model, tmp_path / "again")
        assert torch.equal(load_student(tmp_path / "again")(**batch()).logits, logits)
        with pytest.raises(InputError, match=r"use bitkd\.save_student"):
            model.save_pretrained(tmp_path / "other")
    hidden = AutoModel.from_pretrained(tmp_path)(**batch()).last_hidden_state
    assert torch.equal(hidden, load_student(tmp_path).bert(**batch()).last_hidden_state)


@pytest.mark.parametrize("make", [binary, narrow])
def test_a_students_own_save_pretrained_is_refused(make, tmp_path):
    model = make()
    save_student(model, tmp_path)
    for student in (model, load_student(tmp_path)):
        with pytest.raises(InputError, match=r"use bitkd\.save_student"):
            student.save_pretrained(tmp_path / "other")
    prepare(model, QuantSpec())
    if make is binary:
        model.save_pretrained(tmp_path / "plain")


def test_an_fp32_student_of_stock_shape_is_a_plain_checkpoint(tmp_path):
    student = build_student(prepare(classifier(), QuantSpec()), ShapeSpec(layers=[1, 3]))
    save_student(student, tmp_path)
    assert "quantization_config" not in (tmp_path / "config.json").read_text()
    plain = BertForSequenceClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(plain(**batch()).logits, load_student(tmp_path)(**batch()).logits)


def test_a_model_made_of_a_quantized_one_is_marked_as_what_it_is():
    model = binary()
    assert model.config.quantization_config == {"quant_method": "bitkd"}
    assert getattr(build_student(model, ShapeSpec()).config, "quantization_config", None) is None
    prepare(model, QuantSpec())
    assert getattr(model.config, "quantization_config", None) is None


SCRIPT = """
import sys
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, BertForSequenceClassification, pipeline
for load, words in (
    (AutoConfig.from_pretrained, "bitkd-bert"),
    (AutoModel.from_pretrained, "bitkd-bert"),
    (AutoModelForSequenceClassification.from_pretrained, "bitkd-bert"),
    (lambda folder: pipeline("text-classification", model=folder), "bitkd-bert"),
    (BertForSequenceClassification.from_pretrained, sys.argv[1]),
):
    for folder in sys.argv[2:]:
        try:
            load(folder)
        except (OSError, ValueError) as error:
            assert words in str(error), error
        else:
            raise SystemExit(f"{load} loaded it")
import bitkd
for folder in sys.argv[2:]:
    assert AutoModel.from_pretrained(folder).config.model_type == "bert"
"""


def test_without_bitkd_it_is_refused_in_words(tmp_path):
    save_student(binary(), tmp_path / "student")
    save_packed(binary(), tmp_path / "packed")
    folders = [str(tmp_path / name) for name in ("student", "packed")]
    subprocess.run([sys.executable, "-c", SCRIPT, GUARD, *folders], check=True)


def test_students_are_known_to_a_transformers_that_is_imported_after_bitkd():
    code = "import bitkd, sys; assert 'transformers' not in sys.modules; import transformers.quantizers.auto as a; "
    subprocess.run([sys.executable, "-c", code + "a.AUTO_QUANTIZER_MAPPING['bitkd']"], check=True)
