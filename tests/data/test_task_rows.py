import logging
import math

import datasets
import pytest

from bitkd.config.load import load_config
from bitkd.data.similarity_rows import SimilarityRows
from bitkd.data.task_rows import TaskRows
from bitkd.data.tasks import FilesSpec, HubSpec, TaskSpec
from bitkd.errors import InputError


@pytest.fixture
def rte(tiny_tokenizer, tiny_task):
    task = load_config(["task=rte"], require=("task",)).task
    return TaskRows(task, tiny_tokenizer, tiny_task, max_length=20)


def test_rows_are_counted(rte):
    assert rte.num_rows == {"train": 96, "dev": 33}
    assert rte.train["index"][:] == list(range(96))


def test_names_need_no_reading(tiny_tokenizer, tmp_path):
    task = load_config(["task=mnli"], require=("task",)).task
    rows = TaskRows(task, tiny_tokenizer, tmp_path / "nowhere", selection="holdout")
    assert rows.dev_names == ["holdout", "dev_matched", "dev_mismatched"]
    assert rows.fit_dev_names == ["holdout"]


def test_over_long_rows_are_truncated_counted_and_reported(rte, caplog):
    with caplog.at_level(logging.WARNING):
        assert max(rte.train["length"][:]) == 20
    counts = rte.truncated
    assert 0 < sum(counts.values()) < 129
    assert f"rows longer than data.max_length=20 tokens are truncated: {counts['train']} of train" in caplog.text


def test_held_out_rows_are_a_tenth_of_each_label_and_not_trained_on(rte, tiny_tokenizer, tiny_task):
    rows = TaskRows(rte.task, tiny_tokenizer, tiny_task, selection="holdout")
    held_out, train = rows.dev["holdout"], rows.train
    assert sorted(held_out["index"][:] + train["index"][:]) == list(range(96))
    everything = rte.train["label"][:]
    for label in (0, 1):
        assert held_out["label"][:].count(label) == round(everything.count(label) / 10)
    assert len(rows.train_texts()["label"]) == rows.num_rows["train"] == len(train)
    assert rows.source_hash() != rte.source_hash()
    assert rows.fingerprint() != rte.fingerprint()


def test_an_unknown_selection_is_refused(rte, tiny_tokenizer):
    with pytest.raises(InputError, match="selection=hold is unknown; did you mean holdout"):
        TaskRows(rte.task, tiny_tokenizer, selection="hold")


def test_tokenized_rows_are_kept_and_used_again(rte, tiny_tokenizer, tiny_task, tmp_path, monkeypatch):
    def load(max_length=20):
        rows = TaskRows(rte.task, tiny_tokenizer, tiny_task, max_length, cache_dir=tmp_path)
        return rows.train[:], rows.truncated

    expected = rte.train[:], rte.truncated
    assert load() == expected
    assert sorted(file.name.split("-")[1] for file in tmp_path.iterdir()) == ["dev", "train"]
    monkeypatch.setattr(type(tiny_tokenizer), "__call__", None)  # the second time nothing may be tokenized
    assert load() == expected
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        load(max_length=16)


def test_reading_leaves_the_progress_bars_of_datasets_as_they_were(rte):
    assert datasets.is_progress_bar_enabled()
    assert len(rte.train) == 96
    assert datasets.is_progress_bar_enabled()


def test_the_fingerprint_is_of_the_content(rte, tiny_tokenizer, tiny_task, tmp_path):
    for name in ("train", "dev"):
        (tmp_path / f"{name}.tsv").write_bytes((tiny_task / "RTE" / f"{name}.tsv").read_bytes())
    assert TaskRows(rte.task, tiny_tokenizer, tmp_path).fingerprint() == rte.fingerprint()
    with open(tmp_path / "dev.tsv", "a") as stream:
        stream.write("99\ta\tb\tentailment\n")
    assert TaskRows(rte.task, tiny_tokenizer, tmp_path).fingerprint() != rte.fingerprint()


@pytest.mark.parametrize(
    "change",
    ["task.labels=[not_entailment,entailment]", "task.files.text=[sentence2,sentence1]", "task.metrics=[accuracy,f1]"],
)
def test_the_fingerprint_is_of_the_meaning_too(change, rte, tiny_tokenizer, tiny_task):
    task = load_config(["task=rte", change], require=("task",)).task
    assert TaskRows(task, tiny_tokenizer, tiny_task).fingerprint() != rte.fingerprint()


def test_a_task_that_is_nowhere_is_named(tiny_tokenizer):
    task = TaskSpec("mine", ["a"], ["x", "y"], files=FilesSpec(dev={"dev": "dev.tsv"}))
    with pytest.raises(InputError, match=r"task mine is not on the hub; give its files with data\.dir=FOLDER"):
        _ = TaskRows(task, tiny_tokenizer).train


@pytest.mark.parametrize(("name", "message"), [("dev", "dev has labels"), ("tests", "task rte has no test set tests")])
def test_only_a_test_set_is_read_as_one(rte, name, message):
    with pytest.raises(InputError, match=message):
        rte.test_rows(name)


def hub_task(monkeypatch, split, **spec):
    found = datasets.DatasetDict(train=split, validation=split)
    monkeypatch.setattr("bitkd.data.task_rows.load_hub_dataset", lambda path, name: found)
    return TaskSpec("mine", ["text"], hub=HubSpec("some/where", dev={"dev": "validation"}), **spec)


def labelled(labels):
    return datasets.Dataset.from_dict({"text": ["a"] * len(labels), "label": labels})


def test_hub_classes_are_mapped_by_name(tiny_tokenizer, monkeypatch):
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["contradiction", "neutral", "entailment"]),
        }
    )
    split = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 2]}, features=features)
    task = hub_task(monkeypatch, split, labels=["entailment", "neutral", "contradiction"])
    assert TaskRows(task, tiny_tokenizer).train["label"][:] == [2, 1, 0]
    task.labels = ["entailment", "neutral", "other"]
    with pytest.raises(InputError, match="label 0 is outside the task's set"):
        _ = TaskRows(task, tiny_tokenizer).train


def test_hub_labels_may_be_names(tiny_tokenizer, monkeypatch):
    task = hub_task(monkeypatch, labelled(["no", "yes"]), labels=["yes", "no"])
    assert TaskRows(task, tiny_tokenizer).train["label"][:] == [1, 0]


@pytest.mark.parametrize(
    ("labels", "spec", "message"),
    [
        ([0, None], {"labels": ["yes", "no"]}, "label None is outside the task's set"),
        (["yes", "maybe"], {"labels": ["yes", "no"]}, "label 'maybe' is outside the task's set"),
        ([0, -1], {"labels": ["yes", "no"]}, "label -1 is outside the task's set"),
        ([], {"labels": ["yes", "no"]}, "train has no rows"),
        (
            [1.0, math.nan],
            {"metric": "pearson", "metrics": ["pearson"], "files": FilesSpec(labels_as="number")},
            "train, row 1: label nan is not a finite number",
        ),
    ],
)
def test_a_bad_hub_label_is_named(labels, spec, message, tiny_tokenizer, monkeypatch):
    with pytest.raises(InputError, match=message):
        _ = TaskRows(hub_task(monkeypatch, labelled(labels), **spec), tiny_tokenizer).train


@pytest.mark.parametrize(("highest", "is_noted"), [(5, True), (1, False)])
def test_labels_in_the_lower_half_of_the_range_are_reported(highest, is_noted, tiny_tokenizer, tmp_path, caplog):
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_text("a\tb\tlabel\nthe dog\tthe cat\t1\na bird\ta dog\t0.2\n")
    files = FilesSpec(dev={"dev": "dev.tsv"})
    task = TaskSpec(
        "pairs", ["a", "b"], metric="spearman", metrics=["spearman"], kind="sentence_similarity", files=files
    )
    task.similarity.highest = highest
    assert SimilarityRows(task, tiny_tokenizer, tmp_path).num_rows == {"train": 2, "dev": 2}
    assert ("is this the range of the labels" in caplog.text) is is_noted


def test_many_unknown_words_are_reported(tiny_tokenizer, tmp_path, caplog):
    for name in ("train", "dev"):
        (tmp_path / f"{name}.tsv").write_text("text\tlabel\n" + "中 文 dog\ta\n" * 3 + "dog cat\tb\n" * 3)
    task = TaskSpec("t", ["text"], ["a", "b"], files=FilesSpec(dev={"dev": "dev.tsv"}))
    assert len(TaskRows(task, tiny_tokenizer, tmp_path).train) == 6
    assert "t: 22% of the tokens of its rows are [UNK]" in caplog.text
