"""With a server, with one that goes away, and with none: `stub.py` takes its part."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import wandb

from bitkd.config.load import load_config
from bitkd.pipeline import runner
from bitkd.pipeline.plan import make_plan
from bitkd.tracking import agent, connection, make_observer, report
from bitkd.tracking.connection import Connection, WaitEndedError
from bitkd.tracking.wandb import WandbObserver
from tests.tracking.stub import KEY

JOBS = {"teacher", "init", "single", "single_binary", "report"}


class Server:
    def __init__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self):
        self.process = subprocess.Popen([sys.executable, str(Path(__file__).with_name("stub.py")), str(self.port)])
        for _ in range(200):
            try:
                return self.state()
            except OSError:
                time.sleep(0.05)
        pytest.fail("the server did not start")

    def stop(self):
        self.process.kill()
        self.process.wait()

    def state(self):
        with urllib.request.urlopen(f"{self.url}/state") as answer:
            return json.load(answer)

    def runs(self):
        """Job type -> run."""
        runs = self.state()["runs"]
        assert len({run["jobType"] for run in runs}) == len(runs)
        return {run["jobType"]: run for run in runs}

    def control(self, **settings):
        data = json.dumps(settings).encode()
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/control", data)).close()


@pytest.fixture
def server(clean_wandb, monkeypatch):
    server = Server()
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "1")
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "1")
    wandb.teardown()
    yield server
    wandb.teardown()
    server.stop()


def start(config, console):
    runner.run(config, console, make_observer(config))


def messages(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("bitkd.tracking")]


def sync(message, folder):
    """Do what a message tells the user to do, in a shell in `folder`."""
    command = re.search(r"wandb sync .*", message)[0]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path}
    done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def steps_of(run):
    return [row["trainer/global_step"] for row in run["history"] if "train/loss" in row]


def test_online_a_run_is_a_group_in_which_each_job_has_an_id_of_its_own(
    settings, console, tmp_path, server, monkeypatch, caplog
):
    monkeypatch.setenv("WANDB_RUN_ID", "mine")  # of no use to a group
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    wandb.teardown()
    more = ("logger=wandb", "wandb.artifacts=true", "trainer.log_every_n_steps=1")
    start(load_config(settings(tmp_path / "runs", "singlestage", *more)), console)
    runs = server.runs()
    assert set(runs) == JOBS
    assert {run["groupName"] for run in runs.values()} == {"rte-singlestage"}
    assert {(run["state"], run["exit_code"]) for run in runs.values()} == {("finished", 0)}
    assert {run["project"] for run in runs.values()} == {"theirs"}
    assert all("dev/score" in run["summary"] for run in runs.values())
    assert steps_of(runs["single"]) == [0, 1, 2, 3]
    artifacts = server.state()["artifacts"]
    assert {(artifact["type"], artifact["state"]) for artifact in artifacts} == {
        ("run_table", "COMMITTED"),
        ("model", "COMMITTED"),
    }
    assert messages(caplog) == []
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert [file for file in files if KEY.encode() in file.read_bytes()] == []


def test_a_project_that_is_set_comes_before_that_of_the_environment(settings, tmp_path, server, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    wandb.teardown()
    config = load_config(settings(tmp_path, "singlestage", "logger=wandb", "wandb.project=mine"))
    plan, observer = make_plan(config), make_observer(config)
    observer.loggers(plan, plan.stages[0])
    observer.stage_left(plan, 0)
    assert server.runs()["teacher"]["project"] == "mine"


def test_online_a_trial_is_one_run_with_the_final_score(settings, console, tmp_path, server, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    monkeypatch.setenv("WANDB_RUN_ID", "trial1")
    wandb.teardown()
    config = agent.with_run_name(load_config(settings(tmp_path / "runs", "singlestage", "logger=wandb")))
    start(config, console)
    (run,) = server.state()["runs"]
    assert (run["name"], run["state"], run["exit_code"]) == ("trial1", "finished", 0)
    metrics = tmp_path / "runs" / "rte" / "singlestage-trial1" / "single_binary" / "metrics.json"
    assert run["summary"]["dev/score"] == json.loads(metrics.read_text())["score"]


def test_what_a_server_that_goes_away_missed_is_sent_by_the_command_that_is_told_once(
    settings, console, tmp_path, server, monkeypatch, caplog
):
    loggers = WandbObserver.loggers

    def go_away(self, plan, stage):
        found = loggers(self, plan, stage)
        if stage.name == "single":
            server.stop()
        return found

    monkeypatch.setattr(WandbObserver, "loggers", go_away)
    more = ("logger=wandb", "trainer.log_every_n_steps=1")
    start(load_config(settings(tmp_path / "my runs", "singlestage", *more)), console)
    assert (tmp_path / "my runs" / "rte" / "singlestage" / "single_binary" / "metrics.json").exists()
    (message,) = messages(caplog)
    assert f"no connection to {server.url}" in message
    server.start()
    sync(message, tmp_path)
    runs = server.runs()
    assert set(runs) == {"single", "single_binary", "report"}  # the new server has not seen the others
    assert all(run["state"] == "finished" and "dev/score" in run["summary"] for run in runs.values())
    for stage in ("single", "single_binary"):
        assert steps_of(runs[stage]) == [0, 1, 2, 3]


@pytest.mark.parametrize("trouble", ["none", "errors", "key", "short key", "refusal"])
def test_without_a_server_or_with_a_wrong_key_everything_is_offline_from_the_start(
    settings, tmp_path, server, monkeypatch, caplog, trouble
):
    key = {"key": KEY[::-1], "short key": "12345678"}.get(trouble, KEY)
    monkeypatch.setenv("WANDB_API_KEY", key)
    wandb.teardown()
    if trouble == "none":
        server.stop()
    if trouble == "errors":
        server.control(fail=500)
    if trouble == "refusal":
        server.control(fail_query="upsertBucket")
    config = load_config(settings(tmp_path / "runs", "singlestage", "logger=wandb"))
    plan, observer = make_plan(config), make_observer(config)
    for stage in plan.stages[:2]:
        (logger,) = observer.loggers(plan, stage)
        logger.log_metrics({"train/loss": 1.0}, step=0)
        observer.stage_left(plan, 0)
    (message,) = messages(caplog)
    assert key not in message
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    if trouble == "none":
        server.start()
    server.control(fail=None, fail_query=None)
    sync(message, tmp_path)
    runs = server.runs()
    assert set(runs) == {"teacher", "init"}
    assert all(run["state"] == "finished" and steps_of(run) == [0] for run in runs.values())


def test_a_part_of_the_report_that_fails_costs_no_other_part(settings, console, tmp_path, server, monkeypatch, caplog):
    monkeypatch.setattr(report, "_log_table", lambda *_: 1 / 0)
    config = load_config(settings(tmp_path / "runs", "singlestage", "logger=wandb", "train.max_steps=1"))
    start(config, console)
    assert ["division by zero" in message for message in messages(caplog)] == [True]
    found = server.runs()["report"]
    assert (found["state"], found["exit_code"]) == ("failed", 1)
    assert "dev/score" in found["summary"]
    assert any(key.startswith("report/") for row in found["history"] for key in row)


def test_a_wait_for_the_server_ends_soon_after_a_request_to_stop(server, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "60")
    monkeypatch.setattr(connection, "STOP_SECONDS", 0.5)
    wandb.teardown()
    asked = []
    tracker = Connection(lambda: bool(asked))
    run = tracker.open(tmp_path)
    run.log({"loss": 1.0})
    server.stop()
    asked.append(True)
    began = time.monotonic()
    tracker.finish(75)
    wandb.teardown()
    assert time.monotonic() - began < 20
    with pytest.raises(WaitEndedError):
        tracker.open(tmp_path)
    (message,) = messages(caplog)
    server.start()
    sync(message, tmp_path)
    (found,) = server.state()["runs"]
    assert [row["loss"] for row in found["history"]] == [1.0]
    assert found["exit_code"] == 75


def test_a_wait_has_a_limit():
    tracker = Connection(lambda: False)
    with pytest.raises(TimeoutError, match="no answer in 0 s"):
        tracker.wait(lambda: time.sleep(5), limit=0.2)
