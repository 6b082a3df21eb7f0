import csv
import json
import struct
from pathlib import Path

import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record

from bitkd.config.load import load_config
from bitkd.errors import StoppedError
from bitkd.pipeline import runner
from bitkd.pipeline.plan import make_plan
from bitkd.tracking import agent, make_observer, report
from bitkd.tracking import wandb as tracking

FAKE_KEY = "0123456789abcdef" * 2 + "deadbeef"


def run(config, console):
    """As the command runs it: with the observer that `logger=` asks for."""
    return runner.run(config, console, make_observer(config))


STAGES = ["teacher", "init", "single", "single_binary"]


@pytest.fixture
def offline(clean_wandb):
    """Nothing is sent: there is no key."""


def read_records(folder):
    """The records of an offline run: LevelDB's log format (32 KiB blocks; checksum, length, type, data) behind 7 bytes."""
    (file,) = folder.glob("*.wandb")
    data, position, parts = file.read_bytes(), 7, []
    while position + 7 <= len(data):
        left = -position % 32768 or 32768
        if left < 7:
            position += left
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        parts.append(data[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(b"".join(parts))
            parts = []


def read_run(folder):
    """Group, job type, configuration, summary and history of an offline run."""
    found = {"config": {}, "summary": {}, "history": [], "artifacts": [], "exit": None}
    for record in read_records(folder):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found |= {"group": record.run.run_group, "job": record.run.job_type, "name": record.run.display_name}
            found |= {"id": record.run.run_id, "project": record.run.project}
        updates = [record.run.config] if kind == "run" else [record.config] if kind == "config" else []
        for update in updates:
            found["config"] |= {item.key: json.loads(item.value_json) for item in update.update if item.key}
        if kind == "summary":
            found["summary"] |= {name_of(item): json.loads(item.value_json) for item in record.summary.update}
        elif kind == "history":
            found["history"].append({name_of(item): json.loads(item.value_json) for item in record.history.item})
        elif kind == "artifact":
            found["artifacts"].append(record.artifact.name)
        elif kind == "exit":
            found["exit"] = record.exit.exit_code
    return found


def name_of(item):
    return item.key or "/".join(item.nested_key)


def runs_in(logs):
    wandb.teardown()  # finish() leaves an offline file open
    return [read_run(folder) for folder in sorted((logs / "wandb").glob("offline-run-*"))]


def test_a_run_is_a_group_with_a_job_for_each_stage_and_a_report(settings, console, tmp_path, offline, monkeypatch):
    config = load_config(settings(tmp_path, "singlestage", "logger=wandb", "wandb.artifacts=true", "seed=3"))
    run(config, console)
    found = {entry["job"]: entry for entry in runs_in(tmp_path / "rte" / "singlestage" / "logs")}
    assert set(found) == {*STAGES, "report"}
    assert {entry["group"] for entry in found.values()} == {"rte-singlestage"}
    for name in STAGES:
        entry = found[name]
        metrics = json.loads((tmp_path / "rte" / "singlestage" / name / "metrics.json").read_text())
        stage = json.loads((tmp_path / "rte" / "singlestage" / name / "stage.json").read_text())
        assert entry["name"] == f"singlestage/{name}"
        assert entry["exit"] == 0
        assert entry["summary"]["dev/score"] == metrics["score"]
        assert entry["summary"]["dev/loss"] == metrics["dev"]["loss"]
        assert entry["summary"]["steps"] == stage["steps"]
        assert entry["summary"]["size/file_mib"] == stage["size"]["file_mib"]
        assert (entry["config"]["task"], entry["config"]["pipeline"], entry["config"]["seed"]) == (
            "rte",
            "singlestage",
            3,
        )
        assert entry["config"]["settings"]["train"]["lr"] == 1e-2
        assert entry["config"]["stage"]["steps"] == stage["steps"]
    assert found["single_binary"]["config"]["stage"]["weight_bits"] == 1
    report = found["report"]
    assert report["summary"]["dev/score"] == found["single_binary"]["summary"]["dev/score"]
    (media,) = [row for row in report["history"] if "stages/nrows" in row]
    assert media["stages/nrows"] == 4
    (media,) = [row for row in report["history"] if any(key.startswith("report/") for key in row)]
    pictures = {key.split("/")[1] for key in media if key.startswith("report/")}
    assert len(pictures) == 4
    assert {media[f"report/{picture}/_type"] for picture in pictures} == {"image-file"}
    assert "rte-singlestage-single_binary" in report["artifacts"]
    before = len(runs_in(tmp_path / "rte" / "singlestage" / "logs"))
    run(config, console)  # nothing is computed, and nothing is logged
    assert len(runs_in(tmp_path / "rte" / "singlestage" / "logs")) == before
    run(load_config(settings(tmp_path, "singlestage", "logger=wandb", "seed=3", "run.name=twin")), console)
    (twin,) = runs_in(tmp_path / "rte" / "twin" / "logs")  # all of its stages came from the store
    assert (twin["job"], twin["summary"]["dev/score"]) == ("report", report["summary"]["dev/score"])


def test_a_report_that_a_kill_prevented_is_written_at_the_next_start(settings, console, tmp_path, offline, monkeypatch):
    config = load_config(settings(tmp_path, "singlestage", "logger=wandb", "train.max_steps=1"))

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(tracking.WandbObserver, "run_finished", killed)
        with pytest.raises(KeyboardInterrupt):
            run(config, console)
    run(config, console)
    logs = tmp_path / "rte" / "singlestage" / "logs"
    assert [entry["job"] for entry in runs_in(logs)].count("report") == 1


def test_an_online_mode_without_a_key_is_offline_and_asks_nothing(settings, tmp_path, offline, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a prompt"))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    plan = make_plan(load_config(settings(tmp_path, "singlestage", "logger=wandb")))
    assert len(tracking.WandbObserver().loggers(plan, plan.stages[0])) == 1
    assert wandb.run.settings.mode == "offline"
    wandb.finish()


def test_under_an_agent_all_stages_are_one_run_whose_steps_go_on(settings, console, tmp_path, offline, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    more = ("logger=wandb", "trainer.log_every_n_steps=1")
    for number in (1, 2):  # the second finds every stage done, and is a trial with a score all the same
        monkeypatch.setenv("WANDB_RUN_ID", f"trial{number}")
        wandb.teardown()
        name = agent.with_run_name(load_config(settings(tmp_path, "singlestage"))).run.name
        assert name == f"singlestage-trial{number}"
        run(load_config(settings(tmp_path, "singlestage", *more, f"run.name={name}")), console)
        (found,) = runs_in(tmp_path / "rte" / name / "logs")
        assert found["id"] == f"trial{number}"
        folder = tmp_path / "rte" / name
        scores = {stage: json.loads((folder / stage / "metrics.json").read_text())["score"] for stage in STAGES}
        assert found["summary"]["dev/score"] == scores["single_binary"]
        assert {stage: found["summary"][f"{stage}/dev/score"] for stage in STAGES} == scores
        assert set(found["config"]["stages"]) == set(STAGES)
        assert [row["dev/score"] for row in found["history"] if "dev/score" in row] == [scores["single_binary"]]
        steps = [row["trainer/global_step"] for row in found["history"] if "trainer/global_step" in row]
        assert steps == sorted(steps)
        if number == 1:
            losses = [row for row in found["history"] if any(key.endswith("train/loss") for key in row)]
            assert [next(key.split("/")[0] for key in row if key.endswith("train/loss")) for row in losses] == [
                stage for stage in ("teacher", "single", "single_binary") for _ in range(4)
            ]
            assert len({row["trainer/global_step"] for row in losses}) == 12


def test_a_stage_that_was_cut_ends_its_run_with_the_code_and_goes_on_in_a_new_one(
    settings, console, tmp_path, offline, monkeypatch
):
    execute = runner.execute

    def cut(context):
        if context.stage.name == "single":
            context.observer.loggers(context.plan, context.stage)
            context.stopping.received = 15
            raise StoppedError("asked to stop")
        execute(context)

    config = load_config(settings(tmp_path, "singlestage", "logger=wandb"))
    monkeypatch.setattr(runner, "execute", cut)
    with pytest.raises(StoppedError):
        run(config, console)
    monkeypatch.setattr(runner, "execute", execute)
    run(config, console)
    found = [entry for entry in runs_in(tmp_path / "rte" / "singlestage" / "logs") if entry["job"] == "single"]
    assert sorted(entry["exit"] for entry in found) == [0, 75]
    assert len({entry["id"] for entry in found}) == 2
    assert len({entry["group"] for entry in found}) == 1


def test_a_key_is_in_no_file_that_a_run_writes(settings, console, tmp_path, offline, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", FAKE_KEY)
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.teardown()
    run(load_config(settings(tmp_path, "singlestage", "logger=wandb", "train.max_steps=1")), console)
    wandb.teardown()
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert any(file.suffix == ".wandb" for file in files)
    assert [file for file in files if FAKE_KEY.encode() in file.read_bytes()] == []
    assert not Path(tmp_path / "none").exists()


def test_a_failing_wandb_costs_no_stage_and_no_report(settings, console, tmp_path, offline, monkeypatch, caplog):
    def fail(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(tracking, "facts_after", fail)
    monkeypatch.setattr(report, "write_report", fail)
    monkeypatch.setattr(tracking.WandbLogger, "log_metrics", fail)
    run(load_config(settings(tmp_path, "singlestage", "logger=wandb")), console)
    assert {"wandb: OSError: no space left on device; the run continues with its CSV files"} == {
        record.getMessage() for record in caplog.records if record.name == tracking.__name__
    }
    assert wandb.run is None
    assert (tmp_path / "rte" / "singlestage" / "single_binary" / "metrics.json").exists()


@pytest.mark.parametrize("error", [StoppedError("asked to stop"), KeyboardInterrupt()])
def test_what_asks_a_run_to_stop_passes_its_tracking(error):
    with pytest.raises(type(error)), tracking._harmless():
        raise error


def test_the_csv_log_holds_terms_rate_and_throughput(settings, console, tmp_path):
    run(load_config(settings(tmp_path, "singlestage", "trainer.log_every_n_steps=1")), console)
    with open(tmp_path / "rte" / "singlestage" / "logs" / "single" / "version_0" / "metrics.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    columns = {
        "step",
        "train/loss",
        "train/logits",
        "train/hidden",
        "train/attention",
        "dev/score",
        "dev/accuracy",
        "lr-AdamW/pg1",
    }
    assert columns <= set(rows[0])
    assert all(float(row["train/examples_per_second"]) > 0 for row in rows if row["train/loss"])
    assert len([row for row in rows if row["train/loss"]]) == 4
    assert [int(row["step"]) for row in rows if row["dev/score"]] == [0, 1, 3]  # the first one before the first step
