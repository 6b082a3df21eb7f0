"""A model card shows names of others as text."""

import re

import pytest
from huggingface_hub import ModelCard

from bitkd.errors import InputError
from bitkd.export.card import CardFacts, card_for_hub, check_base_model, check_license, write_card
from bitkd.export.history import History
from bitkd.export.sizes import FilePart
from bitkd.store.records import ExportRecord, SizeRecord, TaskRecord

HOSTILE = "a|b <script> [x](http://y)\n---\nlicense: mit\n# head"


def facts(form="packed", source="files", **changes):
    hub = {"path": "nyu-mll/glue", "name": "rte", "dev": {"dev": "validation"}}
    definition = {"name": HOSTILE, "labels": [HOSTILE, "no"], "hub": hub}
    metrics = {"dev": {"loss": 0.5, "accuracy": 0.75, "matthews": None}, "holdout": {"accuracy": 1.0}}
    record = ExportRecord(
        1, form, HOSTILE, 2, "single_binary", "", "", {}, metrics, trained_for=TaskRecord(definition, 32, source)
    )
    given = {
        "title": HOSTILE,
        "record": record,
        "history": History(),
        "counted": SizeRecord(1000, "W1A8", 0.5, 0.6, 900, 1),
        "file_size": 300,
        "parts": [FilePart("word embeddings", 200, "U8"), FilePart("header", 100, "")],
        "kind": "text_classification",
    }
    return CardFacts(**given | changes)


def test_names_of_others_do_not_break_the_card(tmp_path):
    write_card(tmp_path, facts())
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license is None
    assert card.data.model_name == HOSTILE
    assert [result.dataset_name for result in card.data.eval_results] == [HOSTILE]
    lines = card.text.splitlines()
    assert [line for line in lines if line.startswith("#")][1:] == [
        "## Load it",
        "## Metrics",
        "## Size",
        "## How it was made",
        "## License and base model",
    ]
    assert "<script>" not in card.text
    assert not re.search(r"(?<!\\)\[x(?<!\\)\]\(", card.text)
    cells = [len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("|")]
    assert set(cells) == {4}


def test_a_data_set_of_the_hub_is_named_and_files_are_not(tmp_path):
    write_card(tmp_path, facts(source="hub"))
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.datasets == ["nyu-mll/glue"]
    [result] = data.eval_results
    assert (result.dataset_type, result.dataset_config, result.dataset_split) == ("nyu-mll/glue", "rte", "validation")
    write_card(tmp_path, facts(source="files"))
    assert ModelCard.load(tmp_path / "README.md").data.datasets is None


@pytest.mark.parametrize(
    ("form", "library", "code"),
    [
        ("packed", "bitkd", "import bitkd"),
        ("unpacked", "transformers", "from transformers"),
        ("onnx", "onnx", "onnxruntime"),
    ],
)
def test_the_card_says_how_to_load_each_form(form, library, code, tmp_path):
    write_card(tmp_path, facts(form))
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == library
    assert code in card.text.partition("```python")[2].partition("```")[0]


def test_licenses_and_models_are_identifiers():
    check_license("cc-by-4.0")
    check_base_model("google-bert/bert-base-uncased")
    for check, wrong in ((check_license, "MIT or so"), (check_license, ""), (check_base_model, "../model")):
        with pytest.raises(InputError, match="use one"):
            check(wrong)


@pytest.mark.parametrize("form", ["packed", "unpacked", "onnx"])
def test_on_the_hub_the_code_names_the_repository(form, tmp_path):
    write_card(tmp_path, facts(form))
    card = (tmp_path / "README.md").read_text()
    found = card_for_hub(card, "me/model", "v1")
    assert "FOLDER" in card
    assert "FOLDER" not in found
    assert '("me/model", revision="v1")' in found
    code = found.partition("```python")[2].partition("```")[0]
    compile(code, "card", "exec")
    assert card_for_hub("mine: FOLDER\n", "me/model") == "mine: FOLDER\n"


def test_fp32_values_are_not_called_low_bit_weights(tmp_path):
    write_card(tmp_path, facts("unpacked", base_model="a/b"))
    card = ModelCard.load(tmp_path / "README.md")
    assert not {"quantized", "1-bit"} & set(card.data.tags)
    assert card.data.base_model_relation == "finetune"
    assert "in FP32, with the values of a 1-bit student (W1A8)" in card.text
    assert "Every number has 32 bits in this form" in card.text
    write_card(tmp_path, facts("packed", base_model="a/b", notes=["More."]))
    card = ModelCard.load(tmp_path / "README.md")
    assert {"quantized", "1-bit"} < set(card.data.tags)
    assert card.data.base_model_relation == "quantized"
    assert "refuses to load it. More." in card.text
