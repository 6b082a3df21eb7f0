"""Small trained students as artifacts, without a run: what evaluate and predict start from."""

import itertools
from dataclasses import asdict

import pytest
import torch
from transformers import RobertaConfig, RobertaForSequenceClassification

import bitkd
from bitkd.data.tasks import FilesSpec, TaskSpec
from bitkd.models.artifact import new_classifier
from bitkd.models.encoder import read_spec, write_spec
from bitkd.models.heads import HEADS
from bitkd.store.artifacts import Store
from bitkd.store.records import MetricsRecord, StageRecord, TaskRecord

TASKS = {
    "one": TaskSpec(name="one", text=["sentence"], labels=["neg", "pos"], files=FilesSpec(dev={"dev": "dev.tsv"})),
    "pair": TaskSpec(
        name="pair", text=["first", "second"], labels=["no", "maybe", "yes"], files=FilesSpec(dev={"dev": "dev.tsv"})
    ),
    "number": TaskSpec(
        name="number",
        text=["sentence"],
        metric="pearson",
        metrics=["pearson"],
        files=FilesSpec(dev={"dev": "dev.tsv"}, labels_as="number", label="score"),
    ),
    "similar": TaskSpec(
        name="similar",
        kind="sentence_similarity",
        text=["first", "second"],
        metric="spearman",
        metrics=["spearman"],
        files=FilesSpec(dev={"dev": "dev.tsv"}, test={"test": "test.tsv"}, label="score"),
    ),
}


def write_student(store, model, tokenizer, task, max_length=16, definition=None, recorded=True, source="files"):
    """Publish a model as the artifact of a task; returns its folder."""
    spec = read_spec(model)
    spec.trained_head = True
    write_spec(model, spec)
    definition = definition or {name: value for name, value in asdict(task).items() if name != "augmentation"}
    record = StageRecord(
        format=2,
        name="single_binary",
        kind="single_stage",
        title="",
        task=task.name,
        texts=len(task.text),
        fingerprint="",
        inputs={},
        settings={},
        seed=0,
        steps=1,
        examples=1,
        seconds=0.0,
        world_size=1,
        precision="32-true",
        device="",
        created="",
        versions={},
        trained_for=TaskRecord(definition, max_length, source) if recorded else None,
    )
    write = lambda folder: bitkd.save_student(model, folder, tokenizer)  # noqa: E731
    return store.publish(f"single_stage-{next(NUMBERS)}", write, record, MetricsRecord(0.5)).path


NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    found = Store(tmp_path_factory.mktemp("store"))
    found.prepare()
    return found


@pytest.fixture(scope="module")
def student(store, tiny_bert, tiny_tokenizer):
    """Makes an artifact of a task of TASKS: a random BERT of 64 positions, as if trained on 16 tokens."""

    def make(name, **options):
        torch.manual_seed(3)
        model = new_classifier(tiny_bert, TASKS[name].labels, HEADS[TASKS[name].kind]).eval()
        return write_student(store, model, tiny_tokenizer, TASKS[name], **options)

    return make


@pytest.fixture(scope="module")
def one(student):
    return student("one")


@pytest.fixture(scope="module")
def roberta(store, tiny_tokenizer):
    """A RoBERTa of 50 positions, of which the first two are for padding."""
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=50,
        type_vocab_size=2,
        id2label={0: "neg", 1: "pos"},
        label2id={"neg": 0, "pos": 1},
    )
    return write_student(store, RobertaForSequenceClassification(config).eval(), tiny_tokenizer, TASKS["one"])
