"""What can go wrong around a run, and what comes of it: a clear end, nothing torn, and the same bytes after the next start."""

import ctypes
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from bitkd.config.load import load_config
from bitkd.pipeline.plan import make_plan
from bitkd.pipeline.runner import StageFailedError, run
from bitkd.stages.base import StudentModule
from bitkd.stages.single_stage import SingleStageDistillation
from tests.conftest import read_weights
from tests.processes.test_processes import ENVIRONMENT, start


def run_under(settings, prepare, command="run"):
    """A run in a process of its own that `prepare` has put a limit on."""
    words = [sys.executable, "-m", "bitkd", command, *settings]
    return subprocess.run(
        words, env=ENVIRONMENT, preexec_fn=prepare, capture_output=True, text=True, timeout=240, check=False
    )


def largest_file(size):
    """Stands for a full disk: a file that grows beyond `size` bytes fails with "File too large"."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_disk_that_is_full_at_a_checkpoint(settings, finished, console, tmp_path):
    weights = (finished / "rte" / "singlestage" / "teacher" / "model.safetensors").stat().st_size
    overrides = settings(tmp_path, "singlestage", "checkpoint.every_steps=1")
    failed = run_under(overrides, largest_file(weights * 2))  # a checkpoint has the optimizer's moments too
    assert failed.returncode == 1
    assert "stage teacher failed: OSError: " in failed.stderr
    assert ".ckpt cannot be written (File too large)" in failed.stderr
    assert "not run: init, single, single_binary" in failed.stderr
    assert not [*tmp_path.glob("store/.work/*/*.tmp")]
    run(load_config(overrides), console)
    assert read_weights(tmp_path) == read_weights(finished)


def test_a_disk_that_is_full_at_an_artifact(settings, finished, console, tmp_path):
    (teacher,) = (finished / "store").glob("finetune-*")
    shutil.copytree(teacher, tmp_path / "store" / teacher.name)
    overrides = settings(tmp_path)
    failed = run_under(overrides, largest_file(50_000))
    assert failed.returncode == 1
    assert "stage init failed: " in failed.stderr
    assert "File too large" in failed.stderr
    assert "not run: single, single_binary" in failed.stderr
    assert [folder.name for folder in (tmp_path / "store").glob("[!.]*")] == [teacher.name]  # nothing torn is visible
    run(load_config(overrides), console)
    assert read_weights(tmp_path) == read_weights(finished)
    assert not any((tmp_path / "store" / ".tmp").iterdir())


def without_roots_rights():
    """Root may write where a mode forbids it; a process without these capabilities may not."""
    if os.geteuid() == 0:
        drop, override, search = 24, 1, 2  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        for capability in (override, search):
            ctypes.CDLL(None).prctl(drop, capability, 0, 0, 0)


def test_a_store_that_can_only_be_read(settings, runs):
    store = runs / "store"
    for folder in [store, *(f for f in store.rglob("*") if f.is_dir())]:
        folder.chmod(0o555)
    try:
        refused = run_under(settings(runs, "singlestage", "seed=7"), without_roots_rights)
        planned = run_under([*settings(runs), "--json"], without_roots_rights, "plan")
    finally:
        for folder in [store, *(f for f in store.rglob("*") if f.is_dir())]:
            folder.chmod(0o755)
    assert refused.returncode == 2
    assert "is not writable (Permission denied); choose another folder with run.dir= or run.store=" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert {stage["state"] for stage in json.loads(planned.stdout)["stages"]} == {"done"}


def test_out_of_memory_in_one_stage(settings, finished, console, tmp_path, monkeypatch):
    original = StudentModule.training_step

    def greedy(self, batch, batch_idx):
        if isinstance(self, SingleStageDistillation) and batch_idx == 2:
            torch.empty(2**55)
        return original(self, batch, batch_idx)

    overrides = settings(tmp_path)
    monkeypatch.setattr(StudentModule, "training_step", greedy)
    with pytest.raises(
        StageFailedError, match=r"stage single failed: RuntimeError: (.|\n)*use more trainer\.accumulate"
    ):
        run(load_config(overrides), console)
    assert any("init finished" in line for line in console.lines)
    monkeypatch.undo()
    run(load_config(overrides), console)
    assert read_weights(tmp_path) == read_weights(finished)


def test_a_lock_that_a_dead_process_left(settings, finished, console, tmp_path):
    overrides = settings(tmp_path)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    locks = tmp_path / "store" / ".locks"
    locks.mkdir(parents=True)
    for stage in make_plan(load_config(overrides)).stages:
        (locks / stage.key).write_text(json.dumps({"id": "it", "host": socket.gethostname(), "pid": dead.pid}))
    run(load_config(overrides), console)
    assert not any("waits for" in line for line in console.lines)
    assert read_weights(tmp_path) == read_weights(finished)
    assert not any(locks.iterdir())


@pytest.fixture
def endless_step(tmp_path):
    """A script that is bitkd, but for a step of the single stage that never ends."""
    script = tmp_path / "endless.py"
    script.write_text(
        "import sys, time\n"
        "from bitkd.stages.single_stage import SingleStageDistillation as Single\n"
        "step = Single.training_step\n"
        "def endless(self, batch, index):\n"
        "    if index == 2:\n"
        "        print('in the step', flush=True)\n"
        "        time.sleep(600)\n"
        "    return step(self, batch, index)\n"
        "Single.training_step = endless\n"
        "from bitkd.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    return script


def test_ctrl_c_twice_leaves_at_once(settings, finished, console, tmp_path, endless_step):
    arguments = ["run", *settings(tmp_path, "singlestage", "checkpoint.every_steps=1")]
    process = start(arguments, [sys.executable, str(endless_step)], module=False)
    for expected in ("in the step", "bitkd: finishing the step and saving; Ctrl-C again leaves at once"):
        assert any(line.startswith(expected) for line in process.stdout)
        process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "interrupted twice; run the same command again" in output
    assert "Traceback" not in output
    run(load_config(arguments[1:]), console)
    assert read_weights(tmp_path) == read_weights(finished)


def test_ctrl_c_once_finishes_the_step_and_saves(settings, finished, tmp_path):
    slow = ["train.max_steps=400", "train.eval_every=400"]
    process = start(["run", *settings(tmp_path, "singlestage", *slow)])
    for line in process.stdout:
        if line.startswith("stage 3 of 4: single "):
            break
    work = tmp_path / "store" / ".work"
    deadline = time.monotonic() + 60
    while not [*work.glob("single_stage-*")] and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "stopped in stage single; run the same command again to continue" in output
    assert [*work.glob("single_stage-*/step-*.ckpt")]
