"""`bitkd evaluate`, and what an artifact records of its task."""

import json
import re
import shutil
from dataclasses import asdict

import pytest

from bitkd.cli import main
from bitkd.store.artifacts import read_artifact
from tests.commands.conftest import TASKS

CPU = "trainer.accelerator=cpu"


@pytest.fixture
def metrics(capsys):
    def evaluate(*arguments):
        assert main(["evaluate", *map(str, arguments), CPU, "--json"]) == 0
        return json.loads(capsys.readouterr().out)["metrics"]

    return evaluate


@pytest.fixture
def refusal(capsys):
    def evaluate(*arguments):
        assert main(["evaluate", *map(str, arguments), CPU]) == 2
        return capsys.readouterr().err

    return evaluate


@pytest.fixture
def rows(tmp_path):
    """A folder with the files of task one."""
    for name in ("train", "dev"):
        (tmp_path / f"{name}.tsv").write_text("sentence\tlabel\na dog\tpos\nred cat\tneg\n" + "big bird\tpos\n" * 3)
    return tmp_path


def test_an_artifact_alone_says_what_it_was_trained_for(finished, tiny_task, tmp_path, metrics):
    folder = finished / "rte" / "multistage" / "stage2_binary"
    record = read_artifact(folder).stage.trained_for
    assert (record.max_length, record.source) == (32, "files")
    assert record.definition["text"] == ["sentence1", "sentence2"]
    assert record.definition["labels"] == ["entailment", "not_entailment"]
    copied = shutil.copytree(folder, tmp_path / "copied")
    recorded = json.loads((folder / "metrics.json").read_text())["dev"]
    assert metrics(copied, f"data.dir={tiny_task}") == pytest.approx(recorded)


def test_students_without_a_task_record_none(finished):
    assert read_artifact(finished / "rte" / "multistage" / "general").stage.trained_for is None


def test_nothing_of_augmentation_and_no_folder_is_recorded(finished, tiny_task):
    text = (finished / "rte" / "multistage" / "stage2_binary" / "stage.json").read_text()
    assert "augmentation" not in json.loads(text)["trained_for"]["definition"]
    assert str(tiny_task) not in text


def test_settings_replace_what_is_recorded(one, rows, metrics, tmp_path):
    (rows / "other.tsv").write_text("sentence\tlabel\na dog\tpos\na dog\tneg\n")
    assert metrics(one, f"data.dir={rows}", "task.files.dev={dev: other.tsv}")["accuracy"] == 0.5
    yaml = tmp_path / "mine.yaml"
    yaml.write_text(
        "task:\n  name: mine\n  text: [sentence]\n  labels: [pos, neg]\n  files: {dev: {a: dev.tsv, b: other.tsv}}\n"
    )
    assert set(metrics(one, f"data.dir={rows}", f"task={yaml}")) == {"a/accuracy", "a/loss", "b/accuracy", "b/loss"}


def test_labels_of_another_task_are_refused(one, rows, refusal, tmp_path):
    yaml = tmp_path / "mine.yaml"
    yaml.write_text("task:\n  name: mine\n  text: [sentence]\n  labels: [good, bad]\n  files: {dev: {dev: dev.tsv}}\n")
    text = refusal(one, f"data.dir={rows}", f"task={yaml}")
    assert "labels ['neg', 'pos'] cannot be mapped to the task's ['good', 'bad'] by name" in text


@pytest.mark.parametrize("length", [64, 8])
def test_the_length_may_be_another_one_that_the_model_reads(length, one, rows, metrics):
    metrics(one, f"data.dir={rows}", f"data.max_length={length}")


def test_a_length_over_the_positions_is_refused(one, roberta, rows, refusal, metrics):
    (rows / "dev.tsv").write_text(f"sentence\tlabel\n{'red dog ' * 100}\tpos\n")
    assert "use 8 to 64" in refusal(one, f"data.dir={rows}", "data.max_length=72")
    assert "use 8 to 48" in refusal(roberta, f"data.dir={rows}", "data.max_length=50")
    metrics(roberta, f"data.dir={rows}", "data.max_length=48")


def test_rows_of_files_need_their_folder(one, refusal):
    assert "the rows of task one are in files; give their folder with data.dir=" in refusal(one)


def test_an_artifact_of_an_earlier_version_needs_its_task(student, rows, refusal, capsys):
    old = student("one", recorded=False)
    assert "earlier version of bitkd and does not record its task's definition; give task=" in refusal(
        old, f"data.dir={rows}"
    )
    assert main(["predict", str(old), "--text", "red dog " * 100, CPU]) == 0
    capsys.readouterr()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"files": {"train": "/etc/passwd"}}, "files: /etc/passwd leads out of data.dir"),
        ({"files": {"dev": {"dev": "../dev.tsv"}}}, r"files: \.\./dev.tsv leads out of data.dir"),
        ({"hub": {"path": "/srv/private"}}, "hub.path=/srv/private is no id of a dataset"),
        ({"hub": {"path": "../private"}}, r"hub.path=\.\./private is no id of a dataset"),
        ({"text": []}, "names 0 columns"),
        ({"metric": "${oc.env:HOME}"}, r"have a '\$\{' in them"),
        ({"unknown": 1}, "unknown key task.unknown"),
    ],
)
def test_a_record_from_elsewhere_leads_nowhere(changes, message, student, rows, refusal):
    definition = {name: value for name, value in asdict(TASKS["one"]).items() if name != "augmentation"}
    for name, value in changes.items():
        definition[name] = definition[name] | value if isinstance(value, dict) else value
    folder = student("one", definition=definition)
    assert re.search(message, refusal(folder, f"data.dir={rows}"))
