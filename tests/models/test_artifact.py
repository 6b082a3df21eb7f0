"""Folders of models: what is written, what is refused."""

import json
import re

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
)

from bitkd.errors import InputError
from bitkd.models.artifact import (
    load_classifier,
    load_encoder,
    load_student,
    new_classifier,
    permute_labels,
    save_student,
)
from bitkd.models.prepare import prepare, split_ternary_
from bitkd.models.spec import SPEC_FORMAT, ShapeSpec
from bitkd.models.student import build_student
from bitkd.quant.spec import QuantSpec
from bitkd.quant.splitting import split_layers
from bitkd.quant.swap import swap_layers
from tests.models.conftest import SHAPE


def make():
    """A stock model, as a user of transformers makes it."""
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**SHAPE)).eval()


def test_a_model_that_is_not_what_it_records_is_not_saved(tmp_path):
    by_hand = [
        (swap_layers(make(), QuantSpec(weight_bits=1)), "query is W1A32, not W32A32"),
        (swap_layers(make(), QuantSpec(embedding_bits=1)), "the word embedding is 1-bit, not 32-bit"),
        (prepare(make(), QuantSpec(weight_bits=2)), "the model is split"),
        (prepare(make(), QuantSpec(weight_bits=1, per_row=True)), "has per_row=False, not True"),
        (prepare(make(), QuantSpec(activation_bits=8)), "attention is 8-bit, not 32-bit"),
    ]
    layers = by_hand[2][0]
    layers.config.bitkd["quant"]["weight_bits"] = 1
    split_layers(layers)
    swap_layers(by_hand[3][0], QuantSpec(weight_bits=1))
    swap_layers(by_hand[4][0], QuantSpec(activation_bits=8, attention_activations=True))
    for model, message in by_hand:
        with pytest.raises(InputError, match=rf"is not what its config\.bitkd records: .*{message}"):
            save_student(model, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"format": SPEC_FORMAT + 1},
            rf"another version of bitkd \(format {SPEC_FORMAT + 1}, this one reads {SPEC_FORMAT}",
        ),
        ({"format": None}, r"another version of bitkd \(format None"),
        ({"colour": 1}, r"another version of bitkd or changed by hand \(unknown: colour; missing: none"),
        ({"quant": {"weight_bits": 1}}, "unknown: none; missing: activation_bits, attention_activations"),
        ({"quant": 1}, "describes no student"),
        ({"heads": "4"}, "heads: "),
        ({"quant.weight_bits": 3}, "weight_bits=3 is unsupported"),
        ({"quant.weight_bits": "1"}, "weight_bits"),
    ],
)
def test_a_model_of_another_version_is_refused(tmp_path, change, message):
    save_student(make(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name, value in change.items():
        part, _, field = name.rpartition(".")
        (config["bitkd"][part] if part else config["bitkd"])[field] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    for load in (load_student, load_classifier):
        with pytest.raises(InputError, match=message) as caught:
            load(tmp_path)
        assert "run its pipeline again" in str(caught.value)
        assert str(tmp_path) in str(caught.value)


def test_a_missing_field_is_refused(tmp_path):
    save_student(make(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["bitkd"]["neurons"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="missing: neurons"):
        load_student(tmp_path)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_checkpoint_in_half_precision_is_trained_and_kept_in_fp32(tmp_path, dtype):
    model = AutoModelForSequenceClassification.from_config(BertConfig(**SHAPE)).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / "half")
    for load in (load_encoder, load_classifier, lambda folder: new_classifier(folder, ["a", "b", "c"])):
        source = load(tmp_path / "half")
        student = build_student(source, ShapeSpec(layers=[0, 1]))
        assert {p.dtype for p in [*source.parameters(), *student.parameters()]} == {torch.float32}
    teacher = load_classifier(tmp_path / "half")
    with torch.no_grad():
        teacher.classifier.weight.add_(1e-6)
    save_student(teacher, tmp_path / "full")
    assert torch.equal(load_student(tmp_path / "full").classifier.weight, teacher.classifier.weight)


def test_an_encoder_whose_weights_have_another_size_is_refused(tmp_path):
    BertModel(BertConfig(**SHAPE)).save_pretrained(tmp_path)
    BertConfig(**SHAPE | {"intermediate_size": 48}).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="in another size than its config"):
        new_classifier(tmp_path, ["a", "b"])


def test_a_folder_that_does_not_fit_its_config_is_refused(tmp_path):
    model = prepare(make(), QuantSpec(weight_bits=2))
    split_ternary_(model)
    save_student(model, tmp_path)
    text = (tmp_path / "config.json").read_text()
    for old, new in (
        ('"split": true', '"split": false'),
        ('"num_hidden_layers": 4', '"num_hidden_layers": 3'),
        ('"weight_bits": 1', '"weight_bits": 2'),
    ):
        assert old in text
        (tmp_path / "config.json").write_text(text.replace(old, new))
        with pytest.raises(InputError, match="does not fit its config"):
            load_student(tmp_path)
    with pytest.raises(InputError, match=r"has no config\.json"):
        load_student(tmp_path / "nowhere")


def test_parts_that_a_student_cannot_have_are_refused(tmp_path):
    with pytest.raises(InputError, match="BertForMaskedLM cannot be loaded again as a student"):
        save_student(BertForMaskedLM(BertConfig(**SHAPE)), tmp_path)
    with pytest.raises(
        InputError, match="has no head of a kind of task; use a class that ends in ForSequenceClassification"
    ):
        build_student(BertForMaskedLM(BertConfig(**SHAPE)), ShapeSpec())
    with pytest.raises(InputError, match=re.escape("pass bitkd.estimate_importance(source, batches)")):
        build_student(make(), ShapeSpec(width=0.5))
    with pytest.raises(InputError, match="BertModel has no classifier"):
        permute_labels(BertModel(BertConfig(**SHAPE)), ["LABEL_0", "LABEL_1", "LABEL_2"])
