import csv
import json
import shutil
import subprocess
import sys
import time

import pytest

import bitkd
from bitkd.cli import main
from bitkd.report.mermaid import draw_graph


@pytest.fixture
def where(tiny_task):
    return [f"data.dir={tiny_task}", "data.max_length=32", "trainer.accelerator=cpu"]


def answer(capsys, *arguments):
    assert main([str(a) for a in arguments]) == 0
    return capsys.readouterr().out


def refusal(capsys, *arguments):
    assert main([str(a) for a in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("bitkd: ")
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_and_version_answer_within_a_second(flag):
    times = []
    for _ in range(3):
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-m", "bitkd", flag], capture_output=True, text=True, check=True)
        times.append(time.monotonic() - began)
    assert "bitkd" in done.stdout
    assert sorted(times)[1] < 1


def test_wrong_usage_exits_with_two(capsys):
    for arguments in ([], ["walk"], ["run", "--fast", "task=demo"], ["compare"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2


def test_plan_for_machines(finished, settings, capsys):
    stages = json.loads(answer(capsys, "plan", *settings(finished, "multistage"), "--json"))["stages"]
    assert stages[0]["name"] == "teacher"
    assert stages[-1]["name"] == "stage2_binary"
    assert {s["state"] for s in stages} == {"done"}
    assert all(bitkd.load_student(s["artifact"]) for s in stages[-1:])
    todo = json.loads(
        answer(capsys, "plan", "--json", *settings(finished, "multistage", "stages.split.quant.ste_clip=2.5"))
    )
    assert [s["artifact"] for s in todo["stages"]][-3:] == [None] * 3


def test_plan_for_people(finished, settings, capsys):
    text = answer(capsys, "plan", *settings(finished, "singlestage"))
    lines = text.splitlines()
    assert [line.split()[1] for line in lines[1:5]] == ["teacher", "init", "single", "single_binary"]
    assert lines[5:] == [f"run: {finished / 'rte' / 'singlestage'}", f"store: {finished / 'store'}"]
    picture = answer(capsys, "plan", *settings(finished, "singlestage"), "--mermaid")
    assert picture.startswith("flowchart LR")
    assert "teacher -. teaches .-> single_binary" in picture


def test_config_prints_everything_and_can_be_read_back(capsys):
    text = answer(capsys, "config", "task=demo", "pipeline=multistage", "train.lr=0.5")
    assert "lr: 0.5" in text
    assert json.loads(answer(capsys, "config", "task=demo", "--json"))["task"]["name"] == "demo"


def test_evaluate_reports_the_metrics_and_the_loss_only(finished, where, capsys):
    folder = finished / "rte" / "multistage" / "stage2_binary"
    metrics = json.loads(answer(capsys, "evaluate", folder, "task=rte", *where, "--json"))["metrics"]
    recorded = json.loads((folder / "metrics.json").read_text())["dev"]
    assert metrics == pytest.approx(recorded)
    assert set(metrics) == {"accuracy", "loss"}
    assert "accuracy" in answer(capsys, "evaluate", folder, "task=rte", *where)


def test_a_run_in_place_of_a_checkpoint_is_answered_with_its_stages(finished, where, capsys):
    text = refusal(capsys, "evaluate", finished / "rte" / "singlestage", "task=rte", *where)
    assert "is a run; name one of its stages" in text
    assert "singlestage/single_binary" in text


def test_predict_wants_as_many_texts_as_the_task_has(finished, capsys):
    folder = finished / "rte" / "singlestage" / "single_binary"
    assert "reads two texts; give --text-pair too" in refusal(capsys, "predict", folder, "--text", "a dog")


def test_a_test_set_becomes_a_submission(finished, where, tiny_task, tmp_path, capsys):
    folder = finished / "rte" / "singlestage" / "single_binary"
    lines = (tiny_task / "RTE" / "dev.tsv").read_text().splitlines()
    shutil.copytree(tiny_task, tmp_path / "glue")
    header = "index\tsentence1\tsentence2"
    (tmp_path / "glue" / "RTE" / "test.tsv").write_text(
        "\n".join([header, *(line.rpartition("\t")[0] for line in lines[1:])]) + "\n"
    )
    settings = [text for text in where if not text.startswith("data.dir=")] + [
        f"data.dir={tmp_path / 'glue'}",
        "task=rte",
    ]
    answer(capsys, "predict", folder, *settings, "split=test", "--out", tmp_path / "RTE.tsv")
    written = (tmp_path / "RTE.tsv").read_text().splitlines()
    assert written[0] == "index\tprediction"
    assert [line.split("\t")[0] for line in written[1:]] == [str(i) for i in range(33)]
    right = [a.split("\t")[1] == b.rpartition("\t")[2] for a, b in zip(written[1:], lines[1:])]
    recorded = json.loads((folder / "metrics.json").read_text())["dev"]["accuracy"]
    assert sum(right) / 33 == pytest.approx(recorded)
    text = refusal(capsys, "predict", folder, *settings, "split=tset", "--out", tmp_path / "x")
    assert "has no test set tset; it has test" in text
    assert "needs split=NAME and --out FILE" in refusal(capsys, "predict", folder, *settings, "split=test")
    assert "nothing to predict" in refusal(capsys, "predict", folder)


def test_predict_gives_labels_and_scores(finished, capsys):
    folder = finished / "rte" / "singlestage" / "single_binary"
    texts = ["--text", "a dog", "--text-pair", "the dog", "--text", "a cat", "--text-pair", "not a cat"]
    found = json.loads(answer(capsys, "predict", folder, *texts, "--json"))["predictions"]
    assert [p["text"] for p in found] == ["a dog", "a cat"]
    for prediction in found:
        assert set(prediction["scores"]) == {"entailment", "not_entailment"}
        assert sum(prediction["scores"].values()) == pytest.approx(1)
        assert prediction["label"] == max(prediction["scores"], key=prediction["scores"].get)
    assert len(answer(capsys, "predict", folder, *texts).splitlines()) == 2


def test_a_run_ends_with_the_command_that_exports_its_student(runs, settings, capsys):
    folder = runs / "rte" / "singlestage"
    *_, where, after = answer(capsys, "run", *settings(runs, "singlestage")).splitlines()
    assert where == f"run: {folder}"
    assert after == f"next: `bitkd export {folder / 'single_binary'} OUT` writes the low-bit student itself"


def test_compare_has_a_row_for_each_stage_of_each_run(finished, capsys, tmp_path):
    runs = [finished / "rte" / name for name in ("multistage", "singlestage")]
    rows = json.loads(answer(capsys, "compare", *runs, "--no-latency", "--out", tmp_path / "report", "--json"))["rows"]
    assert len(rows) == 12
    by_stage = {row["stage"]: row for row in rows}
    assert by_stage["general"]["score"] is None
    assert by_stage["stage2_binary"]["precision"] == "W1A8"
    assert by_stage["stage2_binary"]["encoder_bits"] == by_stage["single_binary"]["encoder_bits"]
    assert by_stage["stage2_binary"]["steps"] == 4
    assert all(row["disk_mib"] > 0 and row["seconds"] >= 0 for row in rows)
    assert json.loads(answer(capsys, "compare", tmp_path / "report", "--json"))["rows"] == rows
    with open(tmp_path / "report" / "comparison.csv", newline="") as stream:
        assert len(list(csv.DictReader(stream))) == 12
    assert "single_binary" in answer(capsys, "compare", *runs, "--no-latency")


def test_bad_input_exits_with_two_and_no_traceback(finished, settings, where, tiny_bert, capsys, tmp_path):
    assert "has no trained head" in refusal(capsys, "evaluate", tiny_bert, "task=rte", *where)
    assert "has no trained head" in refusal(
        capsys, "predict", finished / "rte" / "multistage" / "general", "--text", "a", "--text-pair", "b"
    )
    assert "no such folder" in refusal(capsys, "evaluate", "/nowhere/x", "task=rte", *where)
    assert "has no config.json" in refusal(capsys, "predict", tmp_path, "--text", "a")
    assert "give one pair for each text" in refusal(
        capsys, "predict", "x", "--text", "a", "--text-pair", "b", "--text-pair", "c"
    )
    assert "is no run" in refusal(capsys, "compare", tmp_path)
    assert "unknown key" in refusal(capsys, "run", *settings(tmp_path), "train.lrate=1")
    assert "task= is missing" in refusal(capsys, "plan", "pipeline=multistage")
    teacher = finished / "rte" / "singlestage" / "teacher"
    assert "cannot be mapped" in refusal(capsys, "evaluate", teacher, "task=mrpc")
    assert "the task has 3" in refusal(capsys, "evaluate", teacher, "task=mnli")
    assert "reads two texts" in refusal(capsys, "predict", teacher, "--text", "a", "task=rte")


def test_a_damaged_artifact_is_not_evaluated(runs, where, capsys):
    folder = (runs / "rte" / "singlestage" / "teacher").resolve()
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    assert "has checksum" in refusal(capsys, "evaluate", folder, "task=rte", *where)


def test_a_run_begun_again_with_other_settings_is_not_compared(runs, settings, capsys, monkeypatch):
    def stop(*_):
        raise RuntimeError("stopped")

    monkeypatch.setattr("bitkd.pipeline.runner.execute", stop)
    assert main(["run", *settings(runs, "singlestage", "seed=7")]) == 1
    assert "stage teacher failed: RuntimeError: stopped" in capsys.readouterr().err
    text = refusal(capsys, "compare", runs / "rte" / "singlestage")
    assert "teacher, init, single, single_binary missing or of other settings" in text


def test_an_unfinished_run_is_not_compared(runs, capsys):
    file = runs / "rte" / "singlestage" / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["artifacts"]["single_binary"]
    file.write_text(json.dumps(manifest))
    assert "is not finished: single_binary missing" in refusal(capsys, "compare", file.parent)
    file.write_text("{")
    assert "is damaged" in refusal(capsys, "compare", file.parent)


def test_runs_of_different_tasks_are_not_compared(runs, capsys):
    other = runs / "rte" / "multistage" / "manifest.json"
    other.write_text(json.dumps(json.loads(other.read_text()) | {"task": "mrpc"}))
    assert "different tasks (mrpc, rte)" in refusal(capsys, "compare", other.parent, runs / "rte" / "singlestage")


def test_a_failure_while_working_exits_with_one(settings, capsys, tmp_path):
    overrides = settings(
        tmp_path, "singlestage", "stages.teacher.lr=1", "train.gradient_clip=0", "stages.single.loss.hidden=1e39"
    )
    assert main(["run", *overrides]) == 1
    error = capsys.readouterr().err
    assert "stage single failed: NonFiniteLossError: loss term hidden" in error
    assert "not run: single_binary" in error


def test_a_graph_is_drawn_in_the_colours_of_its_states():
    stage = {"name": "one", "title": "One", "kind": "single_stage", "bits": 1, "inputs": {"student": "pretrained"}}
    picture = draw_graph([stage, stage | {"name": "two", "bits": 2}, stage | {"name": "cut", "kind": "split"}])
    assert "style one fill:#e57373" in picture
    assert "style two fill:#6fa8dc" in picture
    assert "style cut fill:#7cc47f" in picture


@pytest.mark.parametrize(
    "command",
    [
        *(
            "run",
            "plan",
            "augment",
            "evaluate",
            "predict",
            "compare",
            "power",
            "store",
            "sweep",
            "config",
            "export",
            "push",
        ),
        *("throughput", "benchmark"),
    ],
)
def test_help_fits_80_columns(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert all(len(line) <= 80 for line in capsys.readouterr().out.splitlines())
