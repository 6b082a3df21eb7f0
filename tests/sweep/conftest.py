"""Sweep files for tests, and a stand-in for bitkd that makes a finished run in no time."""

import json
import os
import sys
from pathlib import Path

import pytest
import yaml

from bitkd.sweep import trials

COMMAND = ["${env}", "bitkd", "run", "${args_no_hyphens}"]

GOLDEN = Path(__file__).parent.parent / "store" / "golden"
MANIFEST = json.dumps(
    json.loads((GOLDEN / "manifest.json").read_text()) | {"planned": {"final": "key"}, "artifacts": {"final": "key"}}
)
STAGE = (GOLDEN / "stage_student.json").read_text()

STAND_IN = """#!{python} -IS
import json, os, signal, sys, time
settings = dict(word.split("=", 1) for word in sys.argv[2:])
run = os.path.join(settings["run.dir"], settings["task"], settings["run.name"])
os.makedirs(run + "/final", exist_ok=True)

def leave(number, frame):
    open(run + "/asked", "w").write(str(number))
    sys.exit(130 if number == signal.SIGINT else 75)

signal.signal(signal.SIGTERM, leave)
signal.signal(signal.SIGINT, leave)
with open(run + "/starts", "a") as stream:
    stream.write("start\\n")
lr = float(settings["train.lr"])
if os.path.exists(settings["run.dir"] + "/hold") and lr > 0.15:
    time.sleep(60)
if lr > 0.9:
    sys.exit("the learning rate explodes")
open(run + "/manifest.json", "w").write({manifest!r})
open(run + "/final/stage.json", "w").write({stage!r})
json.dump({{"score": 1 - (lr - 0.3) ** 2}}, open(run + "/final/metrics.json", "w"))
"""


def sweep_content(**changes):
    """A grid of two learning rates; a value of None takes a key out."""
    content = {
        "method": "grid",
        "metric": {"name": "dev/score", "goal": "maximize"},
        "parameters": {
            "train.lr": {"values": [0.1, 0.2]},
            "task": {"value": "demo"},
            "pipeline": {"value": "singlestage"},
        },
        "program": "bitkd",
        "command": COMMAND,
    } | changes
    return {key: value for key, value in content.items() if value is not None}


@pytest.fixture
def write(tmp_path):
    """Writes a sweep file, and returns its name."""

    def write(**changes):
        file = tmp_path / "two.yaml"
        file.write_text(yaml.safe_dump(sweep_content(**changes)))
        return str(file)

    return write


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Puts the stand-in on the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "bitkd").write_text(STAND_IN.format(python=sys.executable, manifest=MANIFEST, stage=STAGE))
    (folder / "bitkd").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(trials, "planned_keys", lambda config, cache: {"final": "key"})
    return Path(folder / "bitkd")
