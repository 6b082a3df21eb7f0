"""predict and evaluate on exported folders, as on the artifact that they were made of; and rows with labels from outside."""

import csv
import io
import json
import shutil
import subprocess
import sys

import pytest
import torch

import bitkd
from bitkd.cli import main
from bitkd.commands.checkpoints import open_checkpoint
from bitkd.errors import InputError
from bitkd.models.artifact import load_classifier
from bitkd.quant.spec import QuantSpec
from tests.commands.conftest import TASKS, write_student

CPU = "trainer.accelerator=cpu"


@pytest.fixture(scope="module")
def artifact(store, tiny_bert, tiny_tokenizer):
    """Makes the artifact of a quantized student of a task of TASKS, as if trained on 16 tokens; once for each task."""
    made = {}

    def make(name):
        if name not in made:
            torch.manual_seed(3)
            model = bitkd.new_classifier(tiny_bert, TASKS[name].labels).eval()
            bitkd.prepare(model, QuantSpec(weight_bits=1, activation_bits=8))
            made[name] = write_student(store, model, tiny_tokenizer, TASKS[name])
        return made[name]

    return make


@pytest.fixture(scope="module", params=["packed", "onnx"])
def exported(request, artifact, tmp_path_factory):
    """Makes the exported folder of an artifact, in each form."""
    if request.param == "onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
    made = {}

    def make(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("exports") / name
            assert main(["export", str(artifact(name)), str(made[name]), "--format", request.param]) == 0
        return made[name]

    return make


@pytest.fixture
def onnx_folder(artifact, tmp_path):
    """A folder that a test may damage."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    assert main(["export", str(artifact("one")), str(tmp_path / "graph"), "--format", "onnx"]) == 0
    return tmp_path / "graph"


@pytest.fixture
def run(capsys):
    def call(command, *arguments, code=0):
        capsys.readouterr()
        assert main([command, *map(str, arguments)]) == code
        return capsys.readouterr()

    return call


@pytest.fixture
def stdin(monkeypatch, tmp_path):
    """Lets `-` read a content."""

    def give(content):
        (tmp_path / "stdin").write_text(content)
        monkeypatch.setattr("bitkd.data.texts.TextFile.path", tmp_path / "stdin")

    return give


def probabilities(output):
    found = list(csv.DictReader(io.StringIO(output), delimiter="\t"))
    return [[float(value) for name, value in row.items() if name.startswith("probability_")] for row in found]


STREAMS = {
    "one": "a dog\n\nq q q q\n" + "big red bird " * 30 + "\nzzzz\n",
    "pair": "a dog\tthe cat\n\t\n" + "big red bird " * 30 + "\ta dog\n",
    "number": "a dog\nthe cat\n",
}


@pytest.mark.parametrize("name", STREAMS)
def test_predictions_of_standard_input_are_those_of_the_artifact(name, artifact, exported, run, stdin):
    stdin(STREAMS[name])
    expected, found = run("predict", artifact(name), "-", CPU), run("predict", exported(name), "-", CPU)
    rows, others = (list(csv.reader(io.StringIO(text.out), delimiter="\t")) for text in (expected, found))
    assert rows[0] == others[0]
    assert [row[0] for row in rows] == [row[0] for row in others]
    numbers, other_numbers = ([float(x) for row in part[1:] for x in row[1:] if "." in x] for part in (rows, others))
    # What an artifact keeps in FP32 is FP16 in an export.
    assert other_numbers == pytest.approx(numbers, abs=0.02)
    assert ("rows longer than 16 tokens were truncated: 1" in found.err) == (name != "number")


def test_json_lines_and_tables_are_read_from_standard_input(exported, run, stdin):
    stdin("id\tsentence\n7\ta dog\n8\tthe cat\n")
    table = run("predict", exported("one"), "-", CPU).out
    stdin('{"sentence": "a dog"}\n{"sentence": "the cat"}\n')
    assert run("predict", exported("one"), "-", CPU, "--format", "jsonl").out == table
    stdin("")
    assert run("predict", exported("one"), "-", CPU).out == "index\tlabel\tprobability_neg\tprobability_pos\n"


def test_a_batch_gives_what_its_rows_give_alone(exported):
    predictor = bitkd.load_predictor(exported("pair"), CPU)
    pairs = [("a dog", "the cat"), ("big red bird runs", "a"), ("old", "new and fast")]
    together = [list(row["scores"].values()) for row in predictor.predict(pairs)]
    alone = [list(next(predictor.predict([pair]))["scores"].values()) for pair in pairs]
    torch.testing.assert_close(torch.tensor(together), torch.tensor(alone), rtol=0, atol=0.01)


def test_labels_are_put_into_the_order_of_a_task(exported, run, tmp_path):
    task = tmp_path / "turned.yaml"
    fields = ["name: turned", "text: [sentence]", "labels: [pos, neg]", "files: {dev: {dev: dev.tsv}}"]
    task.write_text("\n  ".join(["task:", *fields]))
    own = json.loads(run("predict", exported("one"), "--text", "a dog", CPU, "--json").out)["predictions"][0]
    turned = run("predict", exported("one"), "--text", "a dog", CPU, f"task={task}", "--json").out
    turned = json.loads(turned)["predictions"][0]
    assert list(turned["scores"]) == list(own["scores"])[::-1]
    assert turned["scores"] == pytest.approx(own["scores"], abs=1e-6)


LABELLED = "sentence\tlabel\na dog\tpos\nred cat\tneg\nbig bird\tpos\nold dog\tneg\n"


def measured(run, *arguments):
    return json.loads(run("evaluate", *arguments, CPU, "--json").out)["metrics"]


def test_metrics_of_dev_sets_are_those_of_the_artifact(artifact, exported, run, tmp_path):
    for name in ("train", "dev"):
        (tmp_path / f"{name}.tsv").write_text(LABELLED)
    expected = measured(run, artifact("one"), f"data.dir={tmp_path}")
    assert measured(run, exported("one"), f"data.dir={tmp_path}") == pytest.approx(expected, abs=0.02)


def test_labelled_rows_are_read_from_standard_input_and_from_files(artifact, run, stdin, tmp_path):
    folder = artifact("one")
    (tmp_path / "train.tsv").write_text(LABELLED)
    (tmp_path / "dev.tsv").write_text(LABELLED)
    expected = measured(run, folder, f"data.dir={tmp_path}")
    assert measured(run, folder, tmp_path / "dev.tsv") == expected
    rows = [line.split("\t") for line in LABELLED.splitlines()[1:]]
    (tmp_path / "rows").write_text("\n".join(json.dumps({"label": label, "sentence": text}) for text, label in rows))
    assert measured(run, folder, tmp_path / "rows", "--format", "jsonl") == expected
    stdin(LABELLED)
    assert measured(run, folder, "-") == expected
    stdin("label,sentence\n" + "".join(f'{label},"{text}"\n' for text, label in rows))
    assert measured(run, folder, "-", "--format", "csv") == expected


def test_labelled_pairs_and_numbers_are_read_too(artifact, run, stdin):
    stdin("first\tsecond\tlabel\na dog\tthe cat\tno\n\tred\tyes\n")
    assert set(measured(run, artifact("pair"), "-")) == {"loss", "accuracy"}
    stdin("score\tsentence\n0.5\ta dog\n-1\tred\n2.5\tthe big cat\n")
    assert set(measured(run, artifact("number"), "-")) == {"loss", "pearson"}


def test_long_labelled_rows_are_truncated_and_counted(artifact, run, stdin, caplog):
    stdin("sentence\tlabel\n" + "big red bird " * 30 + "\tpos\na dog\tneg\n")
    run("evaluate", artifact("one"), "-", CPU)
    assert "rows longer than data.max_length=16 tokens are truncated: 1" in caplog.text


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        ("", [], "is empty; it needs a line of column names"),
        ("sentence\tlabel\n", [], "has no rows"),
        ("a dog\tpos\n", [], "column sentence is missing; the columns are ['a dog', 'pos']"),
        ("sentence\na dog\n", [], "the task needs ['sentence', 'label']"),
        ("sentence\tlabel\na dog\tpos\nred\tgood\n", [], ":3: label 'good' is outside the task's set"),
        ("sentence\tlabel\na dog\tpos\n", ["rows.tsv"], "give one file of rows; there are -, rows.tsv"),
        ("", ["--format", "parquet"], "Parquet cannot be read from a pipe"),
    ],
)
def test_labelled_rows_that_cannot_be_read_are_refused(content, more, message, artifact, run, stdin):
    if "parquet" not in more:
        stdin(content)
    err = run("evaluate", artifact("one"), "-", *more, CPU, code=2).err
    assert message in " ".join(err.split())


def test_a_format_without_rows_is_refused(artifact, run):
    assert "give one, or - for standard input" in run("evaluate", artifact("one"), "--format", "csv", code=2).err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["trainer.precision=bf16-mixed"], "runs ONNX models on the CPU"),
        (["data.max_length=999"], "data.max_length=999 is outside what"),
    ],
)
def test_settings_that_an_onnx_model_has_not_are_refused(settings, message, onnx_folder, run):
    assert message in run("predict", onnx_folder, "--text", "a", *settings, code=2).err


def test_an_onnx_folder_runs_on_the_cpu_where_there_is_a_gpu(onnx_folder, monkeypatch):
    monkeypatch.setattr("bitkd.commands.checkpoints.check_machine", lambda spec: None)  # any machine would do
    opened = open_checkpoint(str(onnx_folder), [], None, needs_task=False)
    assert opened.config.trainer.accelerator == "cpu"
    with pytest.raises(InputError, match="accelerator=gpu"):
        open_checkpoint(str(onnx_folder), ["trainer.accelerator=gpu"], None, needs_task=False)


def test_without_a_tokenizer_nothing_is_predicted(onnx_folder, run):
    for file in (*onnx_folder.glob("tokenizer*"), onnx_folder / "export.json"):
        file.unlink()
    assert "has no tokenizer" in run("predict", onnx_folder, "--text", "a", CPU, code=2).err


def test_a_damaged_graph_is_refused(onnx_folder, run):
    content = (onnx_folder / "model.onnx").read_bytes()
    (onnx_folder / "model.onnx").write_bytes(content[:-7])
    assert "model.onnx has checksum" in run("predict", onnx_folder, "--text", "a", CPU, code=2).err
    (onnx_folder / "export.json").unlink()
    assert "model.onnx is damaged" in run("predict", onnx_folder, "--text", "a", CPU, code=2).err


def test_the_extra_is_named_where_it_is_missing(artifact, onnx_folder, run, monkeypatch, tmp_path):
    monkeypatch.setattr("bitkd.models.onnx_files.find_spec", lambda name: None)
    needed = "which is not installed; pip install 'bitkd[onnx]'"
    assert needed in run("predict", onnx_folder, "--text", "a", code=2).err
    assert needed in run("export", artifact("one"), tmp_path / "out", "--format", "onnx", code=2).err
    assert not (tmp_path / "out").exists()


def test_an_onnx_folder_is_no_student_to_train_or_to_export(onnx_folder, run, tmp_path):
    with pytest.raises(InputError, match=r"has no model\.safetensors"):
        bitkd.load_student(onnx_folder)
    with pytest.raises(InputError, match=r"has no model\.safetensors"):
        load_classifier(onnx_folder)
    run("export", onnx_folder, tmp_path / "again", code=2)
    assert not (tmp_path / "again").exists()


def test_wrong_input_is_answered_before_anything_heavy_is_imported(onnx_folder):
    code = (
        "import sys\n"
        "from bitkd.cli import main\n"
        f"assert main(['evaluate', {str(onnx_folder)!r}, 'trainer.accelerator=cpu']) == 2\n"
        "assert not {'torch', 'transformers', 'onnxruntime', 'onnx'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "give their folder with data.dir=" in done.stderr


def test_an_onnx_folder_may_be_copied_and_loses_its_task_without_its_record(onnx_folder, run, tmp_path):
    copied = shutil.copytree(onnx_folder, tmp_path / "copied")
    assert run("predict", copied, "--text", "a dog", CPU).out == run("predict", onnx_folder, "--text", "a dog", CPU).out
    (copied / "export.json").unlink()
    assert "which does not record its task" in run("evaluate", copied, CPU, code=2).err
    assert run("predict", copied, "--text", "a dog", CPU).out.startswith(("pos", "neg"))
