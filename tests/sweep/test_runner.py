import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import yaml

from bitkd.cli import main
from bitkd.config.load import load_config
from bitkd.errors import StoppedError
from bitkd.pipeline.runner import run
from bitkd.stages.base import StudentModule
from bitkd.sweep import engine
from bitkd.sweep.runner import TrialProcess, run_sweep
from bitkd.sweep.spec import read_sweep
from bitkd.sweep.trials import Sweep

ROOT = Path(__file__).parent.parent.parent


def sweep_of(file, tmp_path, *settings):
    return Sweep.open(read_sweep(file, [f"run.dir={tmp_path}", *settings]))


def states(sweep):
    return [sweep.trial(number).state for number in range(sweep.total)]


def wait_for(file):
    until = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < until, f"{file} does not come"
        time.sleep(0.05)


def test_trials_run_once_and_the_table_is_best_first(write, tmp_path, stand_in, capsys):
    words = ["sweep", write(), f"run.dir={tmp_path}", "--json"]
    for _ in range(2):
        assert main(words) == 0
        shown = json.loads(capsys.readouterr().out)
        assert [(t["parameters"]["train.lr"], t["state"], t["starts"]) for t in shown["trials"]] == [
            (0.2, "finished", 1),
            (0.1, "finished", 1),
        ]
        assert [t["score"] for t in shown["trials"]] == pytest.approx([0.99, 0.96])
    assert shown["folder"] == str(tmp_path / "sweeps" / "two")
    shutil.rmtree(tmp_path / "sweeps")  # the runs are there, and say so themselves
    assert main(words) == 0
    assert [t["score"] for t in json.loads(capsys.readouterr().out)["trials"]] == pytest.approx([0.99, 0.96])


def test_a_dry_run_writes_nothing(write, tmp_path, stand_in, capsys):
    known = {"task": {"value": "demo"}, "pipeline": {"value": "singlestage"}, "train.lr": {"values": [0.1, 0.2]}}
    command = ["${env}", "PATH=.venv/bin:${envvar:PATH}", "bitkd", "run", "${args_no_hyphens}"]
    file = write(parameters=known | {"data.corpus": {"value": "[/data/wiki.txt]"}}, command=command)
    assert main(["sweep", file, f"run.dir={tmp_path / 'runs'}", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert '/usr/bin/env PATH=".venv/bin:$PATH" bitkd run ' in shown
    assert " 'data.corpus=[/data/wiki.txt]' pipeline=singlestage task=demo train.lr=0.1 " in shown
    assert "all trials: data.corpus=[/data/wiki.txt] pipeline=singlestage task=demo\n" in shown
    assert shown.count("two-") == 3  # whole names in the table, and the first command's
    assert os.environ["PATH"] not in shown
    assert not (tmp_path / "runs").exists()


def test_the_bitkd_of_the_trials_is_looked_for_before_any_starts(write, tmp_path, stand_in, capsys):
    file = write(command=["${env}", "PATH=/nowhere", "bitkd", "run", "${args_no_hyphens}"])
    assert main(["sweep", file, f"run.dir={tmp_path / 'runs'}"]) == 2
    assert "bitkd is not found on the trials' PATH (/nowhere)" in capsys.readouterr().err
    assert main(["sweep", write(), f"run.dir={tmp_path / 'runs'}", "--dry-run"]) == 0
    assert re.search(r"note: trials are run by \S+/bitkd, which is not the bitkd that checked", capsys.readouterr().out)
    assert not (tmp_path / "runs").exists()


def test_a_failed_trial_does_not_end_the_sweep_and_is_tried_again(write, tmp_path, stand_in, capsys):
    file = write(
        parameters={
            "train.lr": {"values": [0.95, 0.1]},
            "task": {"value": "demo"},
            "pipeline": {"value": "singlestage"},
        }
    )
    for starts in (1, 2):
        assert main(["sweep", file, f"run.dir={tmp_path}"]) == 1
        captured = capsys.readouterr()
        assert "failed with code 1: the learning rate explodes" in captured.out
        assert "run the same command again" in captured.err
        sweep = sweep_of(file, tmp_path)
        assert states(sweep) == ["failed", "finished"]
        assert [sweep.trial(number).starts for number in (0, 1)] == [starts, 1]


def test_shards_share_the_trials(write, tmp_path, stand_in, console, capsys):
    file = write(
        parameters={
            "train.lr": {"values": [0.1, 0.2, 0.3]},
            "task": {"value": "demo"},
            "pipeline": {"value": "singlestage"},
        }
    )
    sweep = sweep_of(file, tmp_path)
    run_sweep(sweep, (2, 2), console)
    assert states(sweep) == ["waiting", "finished", "waiting"]
    run_sweep(sweep, (1, 2), console)
    assert states(sweep) == ["finished"] * 3
    assert main(["sweep", file, "--shards", "3/2"]) == 2
    capsys.readouterr()
    assert main(["sweep", file, f"run.dir={tmp_path}", "--shards", "2/2", "--dry-run", "--json"]) == 0
    assert [trial["number"] for trial in json.loads(capsys.readouterr().out)["trials"]] == [1]
    assert main(["sweep", file, f"run.dir={tmp_path}", "--shards", "4/4", "--dry-run"]) == 2
    assert "--shards 4/4 has no trial: there are 3" in capsys.readouterr().err


def test_a_trial_that_another_process_runs_is_left_to_it(write, tmp_path, stand_in, console):
    sweep = sweep_of(write(), tmp_path)
    sweep.begin()
    lock = sweep.lock(sweep.trial(0))
    assert lock.wait(0) == "held"
    run_sweep(sweep, (1, 1), console)
    lock.release()
    assert states(sweep) == ["waiting", "finished"]
    assert any(f"is run by process {os.getpid()}" in line for line in console.lines)
    assert console.lines[-1].startswith("1 of 2 trials are run by other processes")


def test_a_lock_that_a_dead_container_left_does_not_skip_its_trial(write, tmp_path, stand_in, console):
    sweep = sweep_of(write(), tmp_path)
    sweep.begin()
    file = sweep.lock(sweep.trial(0)).file
    file.parent.mkdir()
    file.write_text(json.dumps({"id": "x", "host": socket.gethostname(), "pid": os.getpid()}))
    run_sweep(sweep, (1, 1), console)
    assert states(sweep) == ["finished", "finished"]


def test_a_state_is_kept_before_it_is_printed(write, tmp_path, stand_in):
    sweep = sweep_of(write(), tmp_path)

    class Full:
        def print(self, text):
            if "finished" in text:
                raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        run_sweep(sweep, (1, 1), Full())
    assert states(sweep) == ["finished", "waiting"]


def test_bayes_proposes_once_for_each_trial(write, tmp_path, stand_in, console, monkeypatch):
    parameters = {
        "train.lr": {"min": 0.0, "max": 0.9},
        "task": {"value": "demo"},
        "pipeline": {"value": "singlestage"},
    }
    sweep = sweep_of(write(method="bayes", run_cap=3, parameters=parameters), tmp_path)
    asked, propose = [], engine.propose
    monkeypatch.setattr(engine, "propose", lambda spec, n, earlier: asked.append(n) or propose(spec, n, earlier))
    run_sweep(sweep, (1, 1), console)
    assert asked == [1, 2]
    assert [trial.state for trial in sweep.trials()] == ["finished"] * 3


def test_the_target_ends_the_sweep(write, tmp_path, stand_in, console):
    sweep = sweep_of(write(metric={"name": "dev/score", "goal": "maximize", "target": 0.9}), tmp_path)
    sweep.begin()
    earlier = sweep.trial(0)  # of a file that swept other values
    earlier.name, earlier.state, earlier.score = "two-0", "finished", 1.0
    sweep.keep(earlier)
    run_sweep(sweep, (1, 1), console)
    assert states(sweep) == ["finished", "waiting"]


def test_a_signal_leaves_the_trials_loaders_alive_to_end_its_step(tmp_path):
    code = (
        "import signal, subprocess, sys, time\n"
        "loader = subprocess.Popen(['sleep', '60'])\n"
        "def leave(*_):\n"
        "    time.sleep(0.2)\n"
        "    alive = loader.poll() is None\n"
        "    loader.kill()\n"
        "    sys.exit(75 if alive else 1)\n"
        "signal.signal(signal.SIGTERM, leave)\n"
        f"open({str(tmp_path / 'ready')!r}, 'w')\n"
        "time.sleep(60)\n"
    )
    process = TrialProcess()

    def ask():
        wait_for(tmp_path / "ready")
        process.forward(signal.SIGTERM)

    asking = threading.Thread(target=ask)
    asking.start()
    with open(tmp_path / "log", "wb") as log:
        assert process.run([sys.executable, "-IS", "-c", code], log) == 75
    asking.join()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_reaches_the_trial_and_ends_the_sweep_with_its_code(
    write, tmp_path, stand_in, console, request, number, code
):
    # A shell starts what it puts in the background deaf to Ctrl-C.
    request.addfinalizer(partial(signal.signal, number, signal.signal(number, signal.SIG_DFL)))
    (tmp_path / "hold").touch()
    sweep = sweep_of(write(), tmp_path)
    second = Path(sweep.trial(1).run)

    def ask():
        wait_for(second / "starts")
        time.sleep(0.2)
        os.kill(os.getpid(), number)

    asking = threading.Thread(target=ask)
    asking.start()
    with pytest.raises(StoppedError) as stop:
        run_sweep(sweep, (1, 1), console)
    asking.join()
    assert stop.value.code == code
    assert (second / "asked").read_text() == str(int(number))
    assert states(sweep) == ["finished", "stopped"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a trial learns of its sweep's death on Linux")
def test_a_killed_sweep_takes_its_trial_along_and_goes_on_with_it(write, tmp_path, stand_in, console, capsys):
    (tmp_path / "hold").touch()
    file = write()
    sweep = sweep_of(file, tmp_path)
    second = Path(sweep.trial(1).run)
    words = [sys.executable, "-m", "bitkd", "sweep", file, f"run.dir={tmp_path}"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_for(second / "starts")
    time.sleep(0.2)
    process.kill()
    process.wait()
    wait_for(second / "asked")
    assert states(sweep) == ["finished", "running"]
    assert main(["sweep", file, f"run.dir={tmp_path}", "--dry-run"]) == 0
    shown = re.findall(r"^ *two-\S+ .* (\w+) *$", capsys.readouterr().out, re.MULTILINE)
    assert shown == ["finished", "killed"]
    (tmp_path / "hold").unlink()
    run_sweep(sweep_of(file, tmp_path), (1, 1), console)
    assert states(sweep) == ["finished", "finished"]
    assert [sweep.trial(number).starts for number in (0, 1)] == [1, 2]
    assert any("trial 1 of 2" in line and line.endswith("is done already") for line in console.lines)


def test_two_real_trials_one_cut_in_a_stage_share_their_stages_and_end_like_uncut_ones(
    settings, tmp_path, console, monkeypatch
):
    given = dict(text.split("=", 1) for text in settings(tmp_path, "singlestage", "checkpoint.every_steps=1"))
    given["data.dir"] = str(shutil.copytree(given["data.dir"], tmp_path / "data"))
    file = tmp_path / "two.yaml"
    content = {
        "method": "grid",
        "metric": {"name": "dev/score", "goal": "maximize"},
        "parameters": {
            "stages.single_binary.lr": {"values": [1.0e-2, 1.0e-3]},
            "pipeline": {"value": given.pop("pipeline")},
        },
        "command": ["bitkd", "run", "${args_no_hyphens}"],
    }
    file.write_text(yaml.safe_dump(content))
    sweep = Sweep.open(read_sweep(str(file), [f"{key}={value}" for key, value in given.items()]))
    commands, steps = [], []
    step = StudentModule.training_step

    def cut(self, batch, batch_idx):
        steps.append(self.global_step)
        if len(commands) == 2 and self.global_step == 2:
            raise StoppedError("asked to stop")
        return step(self, batch, batch_idx)

    def in_process(self, words, log):
        if commands == []:
            commands.append(words)
            run(load_config(words[2:]), console)
            shutil.copytree(tmp_path / "store", tmp_path / "uncut" / "store", symlinks=True)
            return 0
        commands.append(words)
        steps.clear()
        try:
            run(load_config(words[2:]), console)
        except StoppedError as stop:
            return stop.code
        return 0

    monkeypatch.setattr(StudentModule, "training_step", cut)
    monkeypatch.setattr(TrialProcess, "run", in_process)
    with pytest.raises(StoppedError):
        run_sweep(sweep, (1, 1), console)
    assert states(sweep) == ["finished", "stopped"]
    assert run_sweep(sweep, (1, 1), console) == []
    assert steps == [2, 3]  # those that are done stay done
    found = sweep.listed()
    assert [trial.state for trial in found] == ["finished"] * 2
    assert found[0].score >= found[1].score
    for trial in found:
        final = json.loads((Path(trial.run) / "single_binary" / "metrics.json").read_text())
        assert trial.score == final["score"]
    kinds = sorted(folder.name.split("-")[0] for folder in (tmp_path / "store").glob("[!.]*"))
    assert kinds == ["finetune", "init", "single_stage", "single_stage", "single_stage"]
    run(load_config([*commands[1][2:], f"run.dir={tmp_path / 'uncut'}"]), console)
    went_on = Path(sweep.trial(1).run)
    uncut = tmp_path / "uncut" / "rte" / went_on.name
    ends = [
        {file.name: file.read_bytes() for file in (folder / "single_binary").glob("*.safetensors")}
        for folder in (went_on, uncut)
    ]
    assert ends[0]
    assert ends[0] == ends[1]
    rows = Path(given["data.dir"]) / "RTE" / "train.tsv"
    rows.write_text("\n".join(rows.read_text().splitlines()[:-1]) + "\n")
    again = Sweep.open(sweep.spec)
    assert states(again) == ["waiting", "waiting"]  # of other rows
