"""What can go wrong around a run, and what comes of it: a clear end, nothing torn, and the same bytes after the next start."""

import ctypes
import json
import resource
import shutil
import socket
import subprocess
import sys
from functools import partial

import pytest
import torch

from bitkd.config.load import load_config
from bitkd.pipeline.plan import make_plan
from bitkd.pipeline.runner import StageFailedError, run
from bitkd.stages.base import StudentModule
from bitkd.stages.single_stage import SingleStageDistillation
from tests.conftest import read_weights
from tests.processes.children import Children


def largest_file(size):
    """Stands for a full disk: a file that grows beyond `size` bytes fails with "File too large"."""
    return partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))


def test_a_disk_that_is_full_at_a_checkpoint(settings, finished, console, tmp_path):
    weights = (finished / "rte" / "singlestage" / "teacher" / "model.safetensors").stat().st_size
    overrides = settings(tmp_path, "singlestage", "checkpoint.every_steps=1")
    limit = largest_file(weights * 2)  # a checkpoint has the optimizer's moments too
    failed = Children(["run", *overrides], prepare=limit).finish(code=1)
    assert "stage teacher failed: OSError: " in failed
    assert ".ckpt cannot be written (File too large)" in failed
    assert "not run: init, single, single_binary" in failed
    assert not [*tmp_path.glob("store/.work/*/*.tmp")]
    run(load_config(overrides), console)
    assert read_weights(tmp_path) == read_weights(finished)


def test_a_disk_that_is_full_at_an_artifact(settings, finished, console, tmp_path):
    (teacher,) = (finished / "store").glob("finetune-*")
    shutil.copytree(teacher, tmp_path / "store" / teacher.name)
    overrides = settings(tmp_path)
    failed = Children(["run", *overrides], prepare=largest_file(50_000)).finish(code=1)
    assert "stage init failed: " in failed
    assert "File too large" in failed
    assert "not run: single, single_binary" in failed
    assert [folder.name for folder in (tmp_path / "store").glob("[!.]*")] == [teacher.name]  # nothing torn is visible
    run(load_config(overrides), console)
    assert read_weights(tmp_path) == read_weights(finished)
    assert not any((tmp_path / "store" / ".tmp").iterdir())


def drop_roots_rights():
    """Root may write where a mode forbids it; a process without capabilities may not."""
    version, none = (ctypes.c_uint32 * 2)(0x20080522), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(version, none) == 0


def test_a_store_that_can_only_be_read(settings, runs):
    store = runs / "store"
    for folder in [store, *(f for f in store.rglob("*") if f.is_dir())]:
        folder.chmod(0o555)
    try:
        refused = Children(["run", *settings(runs, "singlestage", "seed=7")], prepare=drop_roots_rights).finish(code=2)
        planned = Children(["plan", *settings(runs), "--json"], prepare=drop_roots_rights).finish()
    finally:
        for folder in [store, *(f for f in store.rglob("*") if f.is_dir())]:
            folder.chmod(0o755)
    assert "is not writable (Permission denied); choose another folder with run.dir= or run.store=" in refused
    assert "Traceback" not in refused
    assert {stage["state"] for stage in json.loads(planned)["stages"]} == {"done"}


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
