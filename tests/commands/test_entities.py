"""`bitkd predict` and `bitkd evaluate` with a student that gives words tags."""

import csv
import io
import json

import pytest
import torch
from transformers import AutoModelForTokenClassification

import bitkd
from bitkd.cli import main
from bitkd.data.tags import TagScheme
from bitkd.data.tasks import FilesSpec, TaskSpec
from bitkd.models.heads import HEADS
from tests.commands.conftest import write_student

CPU = "trainer.accelerator=cpu"
TAGS = ["O", "B-THING", "I-THING", "I-PLACE"]
SCORES = ["entity_f1", "entity_precision", "entity_recall"]
TASK = TaskSpec(
    "tagged",
    ["word"],
    TAGS,
    "entity_f1",
    SCORES,
    "token_classification",
    FilesSpec(train="test.conll", dev={"dev": "test.conll"}, test={"test": "test.conll"}),
)
SHORT = "a dog  sees the bird ."
LONG = "the big red dog runs in the park and the small cat sleeps " * 4


@pytest.fixture(scope="module")
def tagger(store, tiny_bert, tiny_tokenizer):
    torch.manual_seed(1)
    model = bitkd.new_classifier(tiny_bert, TAGS, HEADS["token_classification"]).eval()
    with torch.no_grad():
        model.classifier.weight.mul_(100)  # tags that differ from word to word
    return write_student(store, model, tiny_tokenizer, TASK)


@pytest.fixture
def answer(capsys):
    def run(*arguments):
        assert main([*map(str, arguments), CPU]) == 0
        return capsys.readouterr().out

    return run


@torch.no_grad()
def expected(folder, tokenizer, text):
    """Entities by transformers' own means, of a text that one window holds."""
    words = text.split()
    inputs = tokenizer(words, is_split_into_words=True, return_tensors="pt")
    tags = AutoModelForTokenClassification.from_pretrained(folder)(**inputs).logits[0].argmax(-1).tolist()
    firsts = [inputs.word_ids().index(number) for number in range(len(words))]
    return [
        (kind, " ".join(words[first:end]))
        for kind, first, end in TagScheme(TAGS).entities([tags[place] for place in firsts])
    ]


def test_entities_have_their_text_and_their_characters(tagger, answer, tiny_tokenizer, caplog):
    found = json.loads(answer("predict", tagger, "--text", SHORT, "--text", LONG, "--json"))["predictions"]
    for row, text in zip(found, (SHORT, LONG)):
        assert all(entity["text"] == text[entity["start"] : entity["end"]] for entity in row["entities"])
        assert all(0.25 <= entity["score"] <= 1 for entity in row["entities"])
    short = [(entity["label"], " ".join(entity["text"].split())) for entity in found[0]["entities"]]
    assert short == expected(tagger, tiny_tokenizer, SHORT) != []
    assert found[1]["entities"][-1]["end"] > len(LONG) * 3 / 4  # nothing is truncated
    assert not caplog.messages
    lines = answer("predict", tagger, "--text", SHORT, "--text", "").splitlines()
    assert lines[0] == "\t".join(
        f"{entity['start']}:{entity['end']} {entity['label']} {entity['text']}" for entity in found[0]["entities"]
    )
    assert lines[1] == "-"


def test_a_table_holds_entities_as_json(tagger, answer, tmp_path):
    (tmp_path / "rows.tsv").write_text(f"word\n{SHORT}\n{LONG}\n")
    rows = answer("predict", tagger, tmp_path / "rows.tsv", "--json")
    entities = [row["entities"] for row in json.loads(rows)["predictions"]]
    answer("predict", tagger, tmp_path / "rows.tsv", "--out", tmp_path / "out.csv", "data.eval_batch_size=1")
    table = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    assert [row["index"] for row in table] == ["0", "1"]
    for row, found in zip(table, entities):
        read = json.loads(row["entities"])
        assert [entity["text"] for entity in read] == [entity["text"] for entity in found]


def test_a_set_that_has_the_predicted_tags_scores_1(tagger, answer, tmp_path):
    rows = [SHORT.split(), LONG.split(), ["a", "\x84", "dog"]]
    (tmp_path / "test.conll").write_text("\n\n".join("\n".join(row) for row in rows))
    answer("predict", tagger, "split=test", "--out", tmp_path / "tagged.conll", f"data.dir={tmp_path}")
    written = (tmp_path / "tagged.conll").read_text().split("\n")
    assert [line.split("\t")[0] for line in written if line] == [word for row in rows for word in row]
    values = json.loads(answer("evaluate", tagger, tmp_path / "tagged.conll", "--json"))["metrics"]
    assert {name: values[name] for name in SCORES} == dict.fromkeys(SCORES, 1)
    wrong = [line.replace("\tB-THING", "\tI-PLACE") for line in written]
    (tmp_path / "tagged.conll").write_text("\n".join(wrong))
    assert json.loads(answer("evaluate", tagger, tmp_path / "tagged.conll", "--json"))["metrics"]["entity_f1"] < 1
