"""`bitkd store`: what is listed, what is found damaged, and that nothing goes which a run needs or works on."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bitkd.cli import main
from bitkd.config.load import load_config
from bitkd.pipeline.runner import run
from bitkd.store.artifacts import Store
from tests.conftest import Lines

DAY = 86400
ROOT = Path(__file__).parents[2]


@pytest.fixture
def runs(runs):
    """A copy that does not know of the runs that it was copied from."""
    shutil.rmtree(runs / "store" / ".runs")
    return runs


@pytest.fixture
def store(runs):
    return Store(runs / "store")


@pytest.fixture
def store_command(runs, capsys):
    def command(*arguments, code=0):
        assert main(["store", *arguments, f"run.dir={runs}", "--json"]) == code
        return json.loads(capsys.readouterr().out)

    return command


def keys(found):
    return {entry["key"] for entry in found}


def test_list_says_who_needs_what(store_command, runs):
    found = {entry["key"]: entry for entry in store_command("list")["entries"]}
    manifest = json.loads((runs / "rte" / "multistage" / "manifest.json").read_text())["artifacts"]
    both = [str(runs / "rte" / name) for name in ("multistage", "singlestage")]
    assert sorted(found[manifest["teacher"]]["runs"]) == both
    assert found[manifest["split"]]["runs"] == both[:1]
    assert found[manifest["split"]]["size"] == sum(
        file.stat().st_size for file in (runs / "store" / manifest["split"]).iterdir()
    )
    assert len(found) == 11


def test_verify_names_the_flipped_byte(store_command, runs, store):
    assert store_command("verify")["damaged"] == {}
    file = (runs / "rte" / "multistage" / "general").resolve() / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    damaged = store_command("verify", code=1)["damaged"]
    assert list(damaged) == [file.parent.name]
    assert "model.safetensors" in damaged[file.parent.name]


def test_gc_takes_what_a_deleted_run_alone_needed(store_command, runs):
    shutil.rmtree(runs / "rte" / "multistage")
    would = keys(store_command("gc", "--dry-run")["removed"])
    assert len(would) == 7
    assert len(store_command("list")["entries"]) == 11
    assert keys(store_command("gc")["removed"]) == would
    assert {entry["runs"][0] for entry in store_command("list")["entries"]} == {str(runs / "rte" / "singlestage")}
    assert store_command("gc")["removed"] == []


@pytest.mark.parametrize("manifest", ["older", "damaged", "deleted"])
def test_gc_leaves_what_a_run_names_whose_manifest_cannot_be_read(store_command, runs, manifest):
    file = runs / "rte" / "multistage" / "manifest.json"
    content = json.loads(file.read_text())
    (runs / "rte" / "multistage" / "stage2_binary").unlink()
    file.unlink()
    left = 1  # the artifact that nothing names any more
    if manifest == "older":
        file.write_text(json.dumps({"planned": {}, "artifacts": content["artifacts"]}))
        left = 0
    elif manifest == "damaged":
        file.write_text("{")
    assert len(store_command("gc")["removed"]) == left


def test_gc_knows_runs_in_other_folders(store_command, runs, store, tmp_path):
    moved = tmp_path / "elsewhere" / "rte" / "multistage"
    shutil.copytree(runs / "rte" / "multistage", moved, symlinks=True)
    shutil.rmtree(runs / "rte" / "multistage")
    store.register(moved, []).release()
    assert store_command("gc")["removed"] == []


@pytest.mark.parametrize("where", ["another machine", "a disk that is not there"])
def test_gc_leaves_what_a_run_out_of_sight_needs(store_command, runs, store, tmp_path, where):
    shutil.rmtree(runs / "rte" / "multistage")
    keys_of_all = [entry["key"] for entry in store_command("list")["entries"]]
    folder = runs if where == "another machine" else tmp_path / "not mounted"
    store.register(folder / "rte" / "multistage", keys_of_all).release()
    if where == "another machine":
        (file,) = (runs / "store" / ".runs").iterdir()
        file.write_text(json.dumps(json.loads(file.read_text()) | {"host": "another"}))
    assert store_command("gc")["removed"] == []
    assert len(store_command("gc", "--needed")["removed"]) == 11


def test_gc_leaves_what_a_run_names_by_its_folder(store_command, runs, settings):
    teacher = (runs / "rte" / "singlestage" / "teacher").resolve()
    given = [f"stages.teacher.checkpoint={teacher}", "run.name=given"]
    run(load_config(settings(runs, "singlestage", *given)), Lines())
    for name in ("singlestage", "multistage"):
        shutil.rmtree(runs / "rte" / name)
    assert len(store_command("gc")["removed"]) == 10
    assert teacher.is_dir()


def test_gc_leaves_folders_that_are_none_of_its_own(store_command, runs):
    shutil.rmtree(runs / "rte")
    mine = runs / "store" / "my-notes"
    mine.mkdir()
    assert len(store_command("gc")["removed"]) == 11
    assert mine.is_dir()


def test_gc_by_age_and_size(store_command, runs):
    shutil.rmtree(runs / "rte")
    old = sorted(keys(store_command("list")["entries"]))[:3]
    for key in old:
        for file in (runs / "store" / key, *(runs / "store" / key).iterdir()):
            os.utime(file, (file.stat().st_atime, file.stat().st_mtime - 40 * DAY))
    assert keys(store_command("gc", "--older-than", "30", "--dry-run")["removed"]) == set(old)
    total = sum(entry["size"] for entry in store_command("list")["entries"])
    assert len(store_command("gc", "--max-size", str((total - 1) / 1e9), "--dry-run")["removed"]) == 1
    assert store_command("gc", "--max-size", str(total / 1e9))["removed"] == []
    assert len(store_command("gc")["removed"]) == 11


def test_gc_leaves_what_a_living_run_needs(store_command, runs, store):
    run = runs / "rte" / "multistage"
    manifest = json.loads((run / "manifest.json").read_text())["artifacts"]
    living = store.register(run, [])
    try:
        found = store_command("gc", "--needed")
    finally:
        living.release()
    assert keys(found["in_use"]) == set(manifest.values())
    assert all(entry["runs"] == [str(runs / "rte" / "singlestage")] for entry in found["removed"])


def test_gc_leaves_a_stage_that_is_being_computed(store_command, runs, store):
    shutil.rmtree(runs / "rte")
    key = "general-0123456789abcdef0123"
    store.work(key).mkdir(parents=True)
    (store.work(key) / "step-7.ckpt").write_text("")
    lock = store.lock(key)
    assert lock.wait(0) == "held"
    try:
        assert keys(store_command("gc")["in_use"]) == {key}
    finally:
        lock.release()
    assert keys(store_command("gc")["removed"]) == {key}
    assert not store.work(key).exists()


def test_a_pruned_run_computes_again_what_is_missing(store_command, runs, settings):
    store_command("gc", "--needed")
    assert main(["run", "--json", *settings(runs, "singlestage")]) == 0


def test_there_is_no_store(tmp_path, capsys):
    assert main(["store", "list", f"run.dir={tmp_path / 'nowhere'}"]) == 2
    assert "is no store" in capsys.readouterr().err


def test_options_of_gc_are_for_gc(runs, capsys):
    assert main(["store", "list", "--dry-run", f"run.dir={runs}"]) == 2
    assert "are for gc, this is list" in capsys.readouterr().err


def test_the_store_is_looked_at_without_heavy_libraries(runs, tmp_path):
    words = [["list", f"run.dir={runs}"], ["list", "run.dri=1"], ["verify", f"run.dir={tmp_path / 'nowhere'}"]]
    code = f"from bitkd.cli import main; import sys; codes = [main(['store', *given]) for given in {words}]"
    code += "; heavy = {'torch', 'lightning', 'transformers', 'datasets', 'wandb', 'sklearn'}"
    code += "; print(codes, sorted(heavy & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[0, 2, 2] []", done.stderr
