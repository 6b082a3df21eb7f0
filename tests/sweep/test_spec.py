import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import pytest
import sweeps
import wandb
import yaml
from wandb import wandb_agent

from bitkd.errors import InputError
from bitkd.sweep.spec import read_sweep
from bitkd.sweep.trials import Sweep

ROOT = Path(__file__).parent.parent.parent
FILES = sorted(file for file in (ROOT / "experiments").rglob("*.yaml") if file.parent.name not in ("pipeline", "task"))

TRIALS = {
    "arms": 10,
    "augmentation": 8,
    "bits": 24,
    "full": 8,
    "half": 12,
    "methods": 16,
    "pipelines": 40,
    "rates": 4,
    "scales": 16,
    "table": 12,
    "xtc_budgets": 8,
    "xtc_learning_rates": 9,
}

KNOWN = {"task": {"value": "demo"}, "pipeline": {"value": "singlestage"}, "train.lr": {"values": [0.1]}}


@pytest.fixture
def agent(tmp_path, monkeypatch):
    """A wandb agent of a sweep without a server, and its environment."""
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):
        monkeypatch.setenv(name, "")  # the agent sets them, and they must not stay
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    yield wandb_agent.Agent(None, None, sweep_id="sweep")
    wandb.teardown()


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def file(request):
    """A committed sweep file."""
    return request.param


def order_of(spec, parameters):
    return {
        "run_id": "trial1",
        "program": spec.content["program"],
        "args": {key: {"value": value} for key, value in parameters.items()},
    }


def test_every_committed_sweep_is_one_by_wandbs_schema_and_by_ours(file, agent, monkeypatch):
    assert sweeps.schema_violations_from_proposed_config(yaml.safe_load(file.read_text())) == []
    sweep = Sweep.open(read_sweep(str(file)))
    assert sweep.total == TRIALS[file.stem]
    assert f"\n# {sweep.total} trials: " in file.read_text()
    names = [sweep.trial(number).name for number in range(sweep.total)]
    assert len(set(names)) == sweep.total
    # The command is the one that wandb agent builds.
    spec, parameters = sweep.spec, sweep.proposals[-1]
    started = []
    monkeypatch.setattr(wandb_agent, "AgentProcess", lambda command, **_: started.append(command) or SimpleNamespace())
    agent._sweep_command = list(spec.content["command"])
    agent._command_run(order_of(spec, parameters))
    assert started == [spec.command(parameters)]
    assert spec.command(parameters)[:2] == ["/usr/bin/env", f"PATH=.venv/bin:{os.environ['PATH']}"]


def test_wandb_agent_runs_a_trial(agent, settings, tmp_path, monkeypatch, write):
    (tmp_path / "bitkd").write_text(f'#!/bin/sh\nexec {sys.executable} -m bitkd "$@"\n')
    (tmp_path / "bitkd").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pipeline = tmp_path / "one.yaml"
    pipeline.write_text("pipeline: {name: one}\nstages:\n  teacher: {kind: finetune}\n")
    given = dict(text.split("=", 1) for text in settings(tmp_path / "runs", str(pipeline)))
    spec = read_sweep(write(parameters={key: {"value": value} for key, value in given.items()}))
    agent._sweep_command = ["${env}", "bitkd", "run", "logger=wandb", "${args_no_hyphens}"]
    agent._command_run(order_of(spec, {key: value["value"] for key, value in spec.content["parameters"].items()}))
    assert agent._run_processes["trial1"].wait(timeout=300) == 0
    logs = tmp_path / "runs" / "rte" / "one-trial1" / "logs"
    assert [folder.name.split("-")[-1] for folder in (logs / "wandb").glob("offline-run-*")] == ["trial1"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "gird"}, "method: gird is unknown; did you mean grid"),
        ({"method": None}, "write one of grid, random, bayes"),
        ({"method": "random"}, "run_cap: 20"),
        ({"run_cap": 0}, "run_cap: 0 is no number of trials"),
        ({"metric": None}, "metric: is missing; write metric: {name: dev/score, goal: maximize}"),
        ({"metric": {"name": "dev/score", "goal": "largest"}}, "write metric: {name: dev/score, goal: maximize}"),
        ({"metric": {"name": "dev/score"}}, "without a goal wandb takes minimize"),
        ({"metric": {"name": "dev/f1", "goal": "maximize"}}, "write metric"),
        ({"parameters": {}}, "parameters: is missing"),
        ({"parameters": KNOWN | {"train.lr": {}}}, "parameters.train.lr: {} gives no values"),
        ({"parameters": KNOWN | {"train.lr": {"values": []}}}, "parameters.train.lr: .* gives no values"),
        ({"parameters": KNOWN | {"train.lr": {"min": "1e-5", "max": "1e-4"}}}, "2.0e-5, not 2e-5"),
        ({"parameters": KNOWN | {"train.lr": {"min": 0.2, "max": 0.1}}}, "min 0.2 is not less than max 0.1"),
        ({"parameters": {"train": {"parameters": {"lr": {"value": 1.0}}}}}, "dotted keys, such as train.NAME:"),
        *(
            ({"name": name}, "becomes a folder's name and a setting")
            for name in ("XTC #2", "lr: 1", "[x]", ".x", "a/b", "-x")
        ),
        ({"parameters": {"run.name": {"value": "a"}}}, "each trial's own"),
        ({"parameters": {"student.layers": {"values": [None]}}}, "'null' in quotes"),
        (
            {"parameters": {"train.max_steps": {"value": date(2023, 11, 1)}}},
            "2023-11-01 as a date; write it in quotes",
        ),
        ({"parameters": KNOWN | {5: {"value": 1}}}, "unknown key 5"),
        ({"paramters": {}}, "'paramters' was unexpected"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 3}}, "a trial is a chain of stages"),
        ({"command": None}, "does not pass the parameters as key=value"),
        ({"command": ["${env}", "bitkd", "run", "${args}"]}, "does not pass the parameters"),
        ({"command": ["${env}", "bitkd", "run", "${args_no_hyphens}", "${args}"]}, r"\$\{args\} is not supported"),
        ({"command": ["python", "train.py", "${args_no_hyphens}"]}, "does not start `bitkd run`"),
        ({"command": ["bitkd", "run", "--json", "${args_no_hyphens}"]}, "no options"),
    ],
)
def test_a_file_that_cannot_be_swept_is_refused(write, changes, message):
    with pytest.raises(InputError, match=message):
        read_sweep(write(**changes))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"train.lrr": {"values": [0.1]}}, "unknown key train.lrr; did you mean lr"),
        ({"pipline": {"values": ["multistage"]}}, "unknown key pipline; did you mean pipeline"),
        ({"task": {"values": ["demo", "mrcp"]}}, "task=mrcp is unknown; did you mean mrpc"),
        ({"stages.ternary.lr": {"values": [0.1]}}, "stages.ternary is no stage of this pipeline"),
        ({"train.max_steps": {"values": [10, "many"]}}, "wrong type; give a whole number"),
        ({"train.max_steps": {"values": [10, 2.5]}}, "wrong type; give a whole number"),
        ({"budget.steps": {"values": [900, 1]}}, "budget.steps=1 leaves less than one step"),
        ({"budget.shares.single": {"values": [0.9]}, "budget.steps": {"value": 900}}, "they must add up to 1"),
        ({"stages.single.kind": {"values": ["single"]}}, "kind=single is unknown"),
        ({"train.batch_size": {"values": [16, 0]}}, "train.batch_size=0 is too small"),
    ],
)
@pytest.mark.parametrize("method", ["grid", "bayes"])
def test_parameters_that_bitkd_does_not_take_are_refused_with_the_nearest(write, parameters, message, method):
    with pytest.raises(InputError, match=message):
        Sweep.open(read_sweep(write(parameters=KNOWN | parameters, method=method, run_cap=3)))


def test_a_grid_takes_no_distribution(write):
    parameters = KNOWN | {"train.lr": {"distribution": "normal"}}
    with pytest.raises(InputError, match="disallowed type with grid search"):
        Sweep.open(read_sweep(write(parameters=parameters, method="grid", run_cap=3)))


def test_settings_hold_for_all_trials_and_replace_what_is_not_swept(write):
    spec = read_sweep(write(), ["task=rte", "logger=csv"])
    assert spec.command({"train.lr": 0.1}) == ["/usr/bin/env", "bitkd", "run", "train.lr=0.1", "task=rte", "logger=csv"]
    with pytest.raises(InputError, match=r"train\.lr= is swept by .*two\.yaml; leave it out"):
        read_sweep(write(), ["train.lr=0.3"])
    with pytest.raises(InputError, match="each trial's own"):
        read_sweep(write(), ["run.name=mine"])


HEAVY = ["torch", "lightning", "transformers", "datasets", "wandb", "sweeps", "sklearn", "scipy"]


def test_a_wrong_sweep_is_refused_before_anything_heavy_is_imported(write, tmp_path):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(Path(write(parameters=KNOWN | {"train.lrr": {"values": [0.1]}})).read_text())
    refused = [["/nowhere.yaml"], [str(wrong)], *([write(), text] for text in ("train.x=1", "task=mrcp", "seed=x"))]
    code = f"from bitkd.cli import main; import sys; codes = [main(['sweep', *words]) for words in {refused}]"
    code += f"; print(codes, sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[2, 2, 2, 2, 2] []", done.stderr
    for message in (
        "cannot be read",
        "unknown key train.lrr",
        "unknown key train.x",
        "task=mrcp is unknown",
        "'seed=x' has",
    ):
        assert message in done.stderr
