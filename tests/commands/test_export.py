"""`bitkd export`: what is written, what is measured, what is refused."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModel, AutoModelForSequenceClassification

import bitkd
from bitkd.cli import main
from bitkd.config.load import load_config
from bitkd.models.artifact import load_classifier
from bitkd.models.encoder import read_spec, write_spec
from bitkd.models.packed import load_packed
from bitkd.models.prepare import prepare
from bitkd.quant.spec import QuantSpec
from bitkd.store.exports import EXPORT_FILE, check_export, read_export
from tests.commands.conftest import write_student

ROOT = Path(__file__).parent.parent.parent
CPU = "trainer.accelerator=cpu"


@pytest.fixture
def export(capsys):
    def run(*arguments, code=0):
        assert main(["export", *map(str, arguments), CPU, "--json"]) == code
        found = capsys.readouterr()
        return json.loads(found.out) if code == 0 else found.err

    return run


@pytest.fixture
def binary(finished):
    return finished / "rte" / "singlestage" / "single_binary"


@pytest.fixture
def ternary(finished):
    return finished / "rte" / "multistage" / "ternary"


@pytest.fixture
def split(finished):
    return finished / "rte" / "multistage" / "stage2_binary"


@pytest.fixture
def rows(tiny_task):
    return f"data.dir={tiny_task}"


def evaluated(capsys, folder, *settings):
    capsys.readouterr()
    assert main(["evaluate", str(folder), *settings, CPU, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["metrics"]


def near(metrics):
    """The loss depends a little on what computes the layers, the other metrics do not: each row counts 1/33."""
    return pytest.approx(metrics, abs=1e-3)


@pytest.mark.parametrize("stage", ["binary", "ternary", "split"])
def test_every_byte_of_the_file_is_in_the_table_and_counted(stage, export, tmp_path, request):
    told = export(request.getfixturevalue(stage), tmp_path / "out")
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    parts = {part["part"]: part["bytes"] for part in told["parts"]}
    assert sum(parts.values()) == told["bytes"] == size
    assert told["counted_bytes"] == size - parts["header"]
    assert told["size"]["file_mib"] == told["counted_bytes"] / 2**20


def test_five_ternary_weights_fit_in_a_byte(ternary, export, tmp_path):
    two, few = (
        export(ternary, tmp_path / bits, f"--ternary-bits={bits}", "--int8")["counted_bytes"] for bits in ("2", "1.6")
    )
    assert few < two
    assert load_packed(tmp_path / "1.6").config.quantization_config is not None


def test_a_packed_folder_is_used_like_the_artifact(binary, rows, export, tmp_path, capsys):
    told = export(binary, tmp_path / "out", rows, "--no-int8")
    assert evaluated(capsys, tmp_path / "out", rows) == near(told["metrics"]["dev"])
    student = evaluated(capsys, binary, rows)
    assert told["metrics"]["dev"] == pytest.approx(student, abs=1e-3)
    assert told["notes"][0].startswith(f"student → this form: accuracy {student['accuracy']:.4f} → ")
    assert 0 < told["logits"]["median"] <= told["logits"]["largest"] < 0.5
    record = read_export(tmp_path / "out")
    assert (record.task, record.texts, record.trained_for.max_length, record.measured_on.source) == (
        "rte",
        2,
        32,
        "files",
    )
    answers = []
    for folder in (binary, tmp_path / "out"):
        assert main(["predict", str(folder), "--text", "a dog", "--text-pair", "the cat", CPU, "--json"]) == 0
        [answer] = json.loads(capsys.readouterr().out)["predictions"]
        answers.append(list(answer["scores"].values()))
    assert answers[0] == pytest.approx(answers[1], abs=2e-3)
    assert main(["predict", str(tmp_path / "out"), "--text", "a dog", CPU]) == 2
    assert "reads two texts" in capsys.readouterr().err


def test_positions_and_pooler_go_to_8_bits_where_the_metric_allows_it(binary, rows, export, tmp_path, monkeypatch):
    small = export(binary, tmp_path / "small", rows)
    assert small["int8"] == ["bert.embeddings.position_embeddings", "bert.pooler.dense"]
    assert small["notes"][0].startswith("positions and pooler at 8 bits, not in fp16: accuracy ")
    assert small["notes"][0].endswith("; they are at 8 bits")
    monkeypatch.setattr("bitkd.commands.export_forms.LIMIT", 0)
    large = export(binary, tmp_path / "large", rows)
    assert large["int8"] == []
    assert "stay in fp16" in large["notes"][0]
    assert small["bytes"] < large["bytes"]
    unknown = export(binary, tmp_path / "unknown")
    assert "data.dir=FOLDER" in unknown["notes"][0]
    assert (unknown["bytes"], unknown["metrics"]) == (large["bytes"], None)
    assert export(binary, tmp_path / "forced", "--int8")["bytes"] == small["bytes"]


def test_the_rows_of_the_demo_are_always_at_hand(store, tiny_bert, tiny_tokenizer, export, tmp_path, monkeypatch):
    monkeypatch.setattr("bitkd.data.demo.model.write_model", lambda folder, corpus, texts: folder.mkdir())
    monkeypatch.setattr("bitkd.data.demo.files.TRAIN_ROWS", 12)
    monkeypatch.setattr("bitkd.data.demo.files.DEV_ROWS", 30)
    task = load_config(["task=demo"], require=()).task
    model = prepare(bitkd.new_classifier(tiny_bert, task.labels), QuantSpec(weight_bits=1, activation_bits=8)).eval()
    folder = write_student(store, model, tiny_tokenizer, task, source="demo")
    told = export(folder, tmp_path / "out", f"run.dir={tmp_path / 'runs'}")
    assert set(told["metrics"]["dev"]) == {"loss", "accuracy"}
    assert read_export(tmp_path / "out").trained_for.source == "demo"


def test_wrong_input_is_refused_without_heavy_libraries(binary, finished, tiny_bert, tmp_path):
    out = str(tmp_path / "out")
    cases = [
        ["export", str(finished / "rte" / "singlestage" / "teacher"), out],
        ["export", str(tiny_bert), out],
        ["export", str(binary), str(binary)],
        ["export", str(binary), out, "--license=?"],
        ["push", str(binary), "me/model"],
    ]
    code = f"from bitkd.cli import main; import sys; codes = [main(words) for words in {cases}]"
    code += "; heavy = {'torch', 'lightning', 'transformers', 'datasets', 'wandb', 'onnx', 'onnxruntime'}"
    code += "; print(codes, sorted(heavy & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[2, 2, 2, 2, 2] []", done.stderr


def test_what_the_metric_is_measured_with_is_what_is_written(binary, rows, export, tmp_path, capsys):
    told = export(binary, tmp_path / "out", rows)
    assert evaluated(capsys, tmp_path / "out", rows) == near(told["metrics"]["dev"])


def test_an_unpacked_folder_is_a_plain_checkpoint(split, rows, export, tmp_path, capsys):
    told = export(split, tmp_path / "out", rows, "--format", "unpacked")
    content = json.loads((tmp_path / "out" / "config.json").read_text())
    assert content["model_type"] == "bert"
    assert not {"bitkd", "quantization_config", "transformers_weights"} & content.keys()
    _, report = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert 0 < told["logits"]["median"] <= told["logits"]["largest"] < 0.5
    assert told["logits"]["rows"] == 33
    assert evaluated(capsys, tmp_path / "out", rows) == near(told["metrics"]["dev"])


def test_an_onnx_model_takes_8_bits_as_a_packed_folder_does(binary, rows, export, tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    small = export(binary, tmp_path / "small", rows, "--format", "onnx")
    assert small["int8"] == ["bert.embeddings.position_embeddings", "bert.pooler.dense"]
    assert small["logits"]["rows"] == 33
    assert read_export(tmp_path / "small").metrics == small["metrics"]
    monkeypatch.setattr("bitkd.commands.export_forms.find_spec", lambda name: None)
    large = export(binary, tmp_path / "large", rows, "--format", "onnx", "--no-int8")
    assert small["bytes"] < large["bytes"]
    assert large["metrics"] is None
    assert "onnxruntime is not installed, so the ONNX model was not measured" in large["notes"][-1]
    record = read_export(tmp_path / "large")
    assert record.measured_on is None
    assert "as the artifact that this is made of records them" in (tmp_path / "large" / "README.md").read_text()


def test_an_onnx_model_is_measured_on_the_cpu(binary, rows, tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnx")
    asked = []

    def opened(name, settings, *_, **__):
        asked.extend(settings)
        raise bitkd.InputError("enough")

    monkeypatch.setattr("bitkd.commands.export.open_checkpoint", opened)
    words = ["export", str(binary), str(tmp_path / "out"), rows, "--format", "onnx"]
    assert main(words) == 2
    assert load_config(asked, require=()).trainer.accelerator == "cpu"
    assert main([*words, "trainer.accelerator=gpu"]) == 2
    assert "runs ONNX models on the CPU" in capsys.readouterr().err


def test_an_fp32_student_can_only_be_unpacked(finished, binary, export, tmp_path):
    folder = finished / "rte" / "singlestage" / "single"
    text = export(folder, tmp_path / "out", code=2)
    assert "is an FP32 student, which has nothing to pack; name a quantized stage: " in text
    assert str(binary) in text
    export(folder, tmp_path / "out", "--format", "unpacked")
    assert "activations" not in (tmp_path / "out" / "README.md").read_text().lower()


def test_a_headless_encoder_of_no_run_is_exported(tiny_bert, tiny_tokenizer, export, tmp_path):
    encoder = prepare(AutoModel.from_pretrained(tiny_bert), QuantSpec(weight_bits=1, activation_bits=8)).eval()
    bitkd.save_student(encoder, tmp_path / "student", tiny_tokenizer)
    export(tmp_path / "student", tmp_path / "out")
    inputs = tiny_tokenizer("a dog", return_tensors="pt")
    with torch.no_grad():
        expected, found = (model(**inputs).last_hidden_state for model in (encoder, load_packed(tmp_path / "out")))
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.pipeline_tag, card.data.eval_results) == ("feature-extraction", None)
    assert "does not record how it was made" in card.text


def test_a_folder_of_no_run_gets_the_task_that_is_given(tiny_bert, tiny_tokenizer, rows, export, tmp_path, capsys):
    model = bitkd.new_classifier(tiny_bert, ["not_entailment", "entailment"])
    prepare(model, QuantSpec(weight_bits=1, activation_bits=8)).eval()
    spec = read_spec(model)
    spec.trained_head = True
    write_spec(model, spec)
    bitkd.save_student(model, tmp_path / "student", tiny_tokenizer)
    told = export(tmp_path / "student", tmp_path / "out", "task=rte", rows)
    record = read_export(tmp_path / "out")
    assert (record.task, record.texts, record.trained_for.max_length) == ("rte", 2, 64)
    assert evaluated(capsys, tmp_path / "out", rows) == near(told["metrics"]["dev"])


def test_the_card_tells_what_is_known(split, rows, export, tmp_path):
    options = ["--license", "apache-2.0", "--base-model", "google-bert/bert-base-uncased"]
    told = export(split, tmp_path / "mine", rows, *options)
    data = ModelCard.load(tmp_path / "mine" / "README.md").data
    assert (data.license, data.base_model) == ("apache-2.0", "google-bert/bert-base-uncased")
    assert (data.base_model_relation, data.library_name, data.model_name) == ("quantized", "bitkd", "mine")
    assert data.datasets is None
    [result] = data.eval_results
    assert (result.dataset_name, result.dataset_split, result.metric_type) == ("rte", "dev", "accuracy")
    assert result.metric_value == told["metrics"]["dev"]["accuracy"]
    text = (tmp_path / "mine" / "README.md").read_text()
    titles = [line.split(" | ")[0].strip("| ") for line in text.splitlines() if "W1A8 |" in line or "W2A8 |" in line]
    assert titles == ["KD (2-bit)", "Weight-Splitting", "Stage-I KD (1-bit)", "Stage-II KD (1-bit)"]
    assert "of a run with seed 42" in text


def test_metrics_of_another_task_are_not_what_it_was_trained_for(binary, tiny_task, export, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(
        "task:\n  name: other\n  text: [sentence1, sentence2]\n  labels: [entailment, not_entailment]\n"
        "  files: {folder: RTE, dev: {dev: dev.tsv}}\n"
    )
    told = export(binary, tmp_path / "out", f"task={other}", f"data.dir={tiny_task}", "data.max_length=24", "--no-int8")
    record = read_export(tmp_path / "out")
    assert (record.task, record.trained_for.definition["name"], record.trained_for.max_length) == ("rte", "rte", 32)
    assert (record.measured_on.definition["name"], record.measured_on.max_length) == ("other", 24)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    [result] = card.data.eval_results
    assert (result.dataset_name, result.metric_value) == ("other", told["metrics"]["dev"]["accuracy"])
    assert "trained for the task rte" in card.text
    assert "On the dev sets of the task other, with texts of at most 24 tokens" in card.text
    assert "It was not trained for this task." in card.text


def test_an_untrained_head_is_told_in_the_card(tiny_bert, tiny_tokenizer, export, tmp_path):
    model = bitkd.new_classifier(tiny_bert, ["no", "yes"])
    bitkd.save_student(prepare(model, QuantSpec(weight_bits=1)).eval(), tmp_path / "student", tiny_tokenizer)
    told = export(tmp_path / "student", tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.pipeline_tag == "feature-extraction"
    assert any("No trained head is recorded" in note for note in told["notes"])
    assert "No trained head is recorded" in card.text
    assert "classifier with" not in card.text
    assert "trained for" not in card.text


def test_a_card_may_be_edited_and_nothing_else(binary, rows, export, tmp_path, capsys):
    out = tmp_path / "out"
    export(binary, out, "--no-int8")
    (out / "README.md").write_text("mine")
    check_export(out)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    assert main(["evaluate", str(out), rows, CPU]) == 2
    assert "config.json has checksum" in capsys.readouterr().err


def test_an_export_of_an_export_is_refused(binary, export, tmp_path):
    for form in ("packed", "unpacked"):
        export(binary, tmp_path / form, "--format", form)
        assert "is an export already" in export(tmp_path / form, tmp_path / "again", code=2)
    (tmp_path / "packed" / EXPORT_FILE).unlink()
    assert "is an export already" in export(tmp_path / "packed", tmp_path / "again", code=2)
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ternary-bits=1.6"], "has no ternary"),
        (["--format=unpacked", "--int8"], "are for --format packed and onnx"),
        (["--license=All rights reserved"], "is no license identifier"),
        (["--base-model=a b"], "is no id of a model"),
        (["data.dir=/nowhere"], "/nowhere"),
        (["train.lrr=1"], "unknown key"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message, binary, export, tmp_path):
    assert message in export(binary, tmp_path / "out", *options, code=2)
    assert list(tmp_path.iterdir()) == []


def test_four_levels_are_no_ternary_weights(store, tiny_bert, tiny_tokenizer, export, tmp_path):
    spec = QuantSpec(weight_bits=2, activation_bits=8, levels=4)
    task = load_config(["task=rte"], require=()).task
    model = prepare(bitkd.new_classifier(tiny_bert, task.labels), spec).eval()
    folder = write_student(store, model, tiny_tokenizer, task, source="files")
    assert "has no ternary weights" in export(folder, tmp_path / "out", "--ternary-bits=1.6", code=2)


def test_only_artifacts_are_exported(finished, tiny_bert, binary, export, tmp_path):
    assert "is a run; name one of its stages" in export(finished / "rte" / "singlestage", tmp_path / "out", code=2)
    assert "is a plain Hugging Face checkpoint" in export(tiny_bert, tmp_path / "out", code=2)
    assert "no such folder" in export(tmp_path / "absent", tmp_path / "out", code=2)
    damaged = shutil.copytree(binary, tmp_path / "damaged")
    content = bytearray((damaged / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (damaged / "model.safetensors").write_bytes(content)
    assert "has checksum" in export(damaged, tmp_path / "out", code=2)
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(binary, export, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    for name in ("full", "file"):
        assert "exists already and is not overwritten" in export(binary, tmp_path / name, code=2)
    monkeypatch.chdir(tmp_path / "empty")
    for name in (".", "../empty"):
        assert f"{name} is the current directory" in export(binary, name, code=2)
    assert "lies in the artifact" in export(binary, binary / "out", code=2)
    monkeypatch.chdir(tmp_path)
    export(binary, "full/../empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "full"]


def test_only_errors_of_writing_are_about_the_folder(binary, rows, export, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bitkd.models.packed.save_packed", fail)
    assert f"{tmp_path / 'out'} cannot be written (No space left on device)" in export(binary, tmp_path / "out", code=2)
    monkeypatch.setattr("bitkd.commands.inference.DevSets.measure", fail)
    with pytest.raises(OSError, match="No space left"):
        export(binary, tmp_path / "out", rows)
    assert list(tmp_path.iterdir()) == []


def stopped(*_):
    os.kill(os.getpid(), signal.SIGTERM)


def interrupted(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(("event", "code"), [(stopped, 75), (interrupted, 130)])
def test_an_interrupted_export_leaves_nothing(event, code, binary, tmp_path, monkeypatch):
    monkeypatch.setattr("bitkd.commands.export.write_card", event)
    (tmp_path / f".out.{socket.gethostname()}.{2**22 + 1}").mkdir()  # of a process that was killed
    words = ["export", str(binary), str(tmp_path / "out"), CPU]
    if code == 130:
        assert main(words) == code
    else:
        with pytest.raises(SystemExit, match="75"):
            main(words)
    assert list(tmp_path.iterdir()) == []


def test_the_table_is_printed(binary, tmp_path, capsys):
    assert main(["export", str(binary), str(tmp_path / "out"), "--no-int8", CPU]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["part", "bytes", "MiB", "share", "types"]
    assert lines[-1] == f"packed: {tmp_path / 'out'}"
    assert "MiB by the convention of papers (W1A8)" in lines[-2]
    assert load_classifier(tmp_path / "out").num_labels == 2
