"""Runs as a user starts them, in processes of their own: killed, and with two ranks."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel

from bitkd.cli import main
from bitkd.config.load import load_config
from bitkd.data.augment import augmenter
from bitkd.errors import StoppedError
from bitkd.models.artifact import load_student
from bitkd.pipeline import augmentation, execute
from bitkd.pipeline.runner import run
from bitkd.processes import signals
from bitkd.stages import compiling
from bitkd.stages.base import StudentModule
from bitkd.stages.single_stage import SingleStageDistillation
from tests.conftest import make_settings, read_weights
from tests.processes.children import ENVIRONMENT, Children, free_port, place_of


def make_small_shards():
    augmenter.BLOCK, augmenter.SHARD_ROWS = 8, 16


def test_two_processes_augment_to_the_rows_of_one(settings, tmp_path, monkeypatch, capsys):
    def arguments(name, *more):
        return ["augment", *settings(tmp_path / name, "singlestage", *more)[1:]]

    Children(arguments("two", "trainer.devices=2"), 2, make_small_shards).finish()
    monkeypatch.setattr(augmenter, "BLOCK", 8)
    monkeypatch.setattr(augmenter, "SHARD_ROWS", 16)
    assert main(arguments("one")) == 0
    made = []
    for name in ("two", "one"):
        shards = sorted((tmp_path / name / "store").glob("augment-*/shard-*.arrow"))
        made.append([(shard.parent.name, shard.name, shard.read_bytes()) for shard in shards])
    assert len(made[0]) == 96 // 16
    assert made[0] == made[1]


def fill_the_disk_of_rank_zero():
    def full(*_):
        raise OSError("No space left on device")

    if os.environ["RANK"] == "0":
        augmentation.write_shard = full


def test_a_rank_that_cannot_augment_brings_the_other_down(settings, tmp_path):
    arguments = ["augment", *settings(tmp_path, "singlestage", "trainer.devices=2")[1:]]
    output = Children(arguments, 2, fill_the_disk_of_rank_zero).finish(code=1)
    assert "stage augment failed: OSError: No space left on device" in output


def break_rank_one():
    step = StudentModule.training_step

    def broken(self, batch, index):
        if os.environ["RANK"] == "1" and index == 1:
            raise RuntimeError("the cable is loose")
        return step(self, batch, index)

    StudentModule.training_step = broken


def test_what_one_rank_died_of_is_printed(settings, tmp_path):
    arguments = ["run", *settings(tmp_path, "singlestage", "trainer.devices=2")]
    output = Children(arguments, 2, break_rank_one).finish(code=1)
    assert "rank 1: stage teacher failed: RuntimeError: the cable is loose" in output
    assert "cable" in (tmp_path / "rte" / "singlestage" / "teacher.error.rank1.txt").read_text()


def test_two_runs_at_once_compute_each_stage_once(settings, finished, tmp_path):
    names = ("singlestage", "other")
    runs = [Children(["run", *settings(tmp_path, "singlestage", f"run.name={name}")]) for name in names]
    outputs = [run.finish() for run in runs]
    done = [line.split()[4] for output in outputs for line in output.splitlines() if " finished: " in line]
    assert sorted(done) == ["init", "single", "single_binary", "teacher"]
    assert read_weights(tmp_path) == read_weights(finished)
    assert not any((tmp_path / "store" / ".locks").iterdir())


def count_synchronizations_and_compile_short_stages():
    no_sync, compile_layers = DistributedDataParallel.no_sync, compiling.compile_layers

    def counted(self):
        os.write(1, b"gradients are not synchronized\n")
        return no_sync(self)

    def told(module):
        os.write(1, b"layers are compiled\n")
        return compile_layers(module)

    DistributedDataParallel.no_sync = counted
    compiling.BACKEND, compiling.compile_layers = "eager", told
    execute.should_compile = lambda setting, device, total_steps, recorded: total_steps == 14


def test_two_processes_with_half_the_batch_train_like_one(settings, finished, console, tmp_path):
    pipeline = tmp_path / "two_stages.yaml"
    pipeline.write_text(
        "pipeline: {name: two_stages}\n"
        "student: {layers: [1, 3], dropout: 0.0}\n"
        "stages:\n"
        f"  teacher: {{kind: finetune, checkpoint: {finished / 'rte' / 'singlestage' / 'teacher'}}}\n"
        "  init: {kind: init, student: teacher}\n"
        "  single: {kind: single_stage, student: init, teacher: teacher, select: last, max_steps: 20}\n"
        "  compiled: {kind: prediction, student: init, teacher: teacher, select: last, max_steps: 14}\n"
        "  mixed:\n"
        "    {kind: single_stage, student: init, teacher: teacher, select: last, max_steps: 12, loss:\n"
        "      {intervention: gradual, intervention_share: 0.5, extra: {attention_map: 1, attention_output: 1}}}\n"
    )
    weights, kept, flops, logits, passes = [], [], [], [], []
    for name, more in (("one", []), ("two", ["trainer.devices=2", "trainer.accumulate_grad_batches=2"])):
        arguments = settings(tmp_path / name, str(pipeline), "train.lr=1e-3", "train.eval_every=20", *more)
        if more:
            output = Children(["run", *arguments], 2, count_synchronizations_and_compile_short_stages).finish()
        else:
            run(load_config(arguments), console)
        folder = tmp_path / name / "rte" / "two_stages"
        weights.append([load_student(folder / stage).state_dict() for stage in ("single", "compiled", "mixed")])
        kept.append(load_file(folder / "single" / "predictions.safetensors"))
        flops.append(json.loads((folder / "single" / "stage.json").read_text())["flops"]["student"])
        (file,) = (tmp_path / name / "cache" / "logits").iterdir()
        logits.append(load_file(file)["logits"])
        passes.append(json.loads((folder / "compiled" / "stage.json").read_text())["flops"]["teacher"])
    assert output.count("gradients are not synchronized\n") == 2 * (20 + 14 + 12)
    assert output.count("layers are compiled\n") == 2
    assert torch.equal(*logits)  # the processes divide the same batches
    assert passes[0] == passes[1]
    assert ": 8 rows = 2 x 2 x 2\n" in output
    for one, two in zip(*weights):
        for name in one:
            if not name.endswith("key.bias"):  # it has no effect on probabilities: its gradient is rounding
                torch.testing.assert_close(one[name], two[name], atol=1e-5, rtol=0)
    assert kept[0]["dev.labels"].tolist() == kept[1]["dev.labels"].tolist()  # uneven shares, in the rows' order
    torch.testing.assert_close(kept[0]["dev.logits"], kept[1]["dev.logits"], atol=1e-4, rtol=0)
    assert 0.7 * flops[0] < flops[1] <= flops[0]  # each part is padded to its own length


def make_a_long_step(seconds):
    """The third step of the single stage says that it has begun, and takes so long."""
    step = SingleStageDistillation.training_step

    def long(self, batch, index):
        if index == 2:
            os.write(1, b"in the step\n")
            time.sleep(seconds)
        return step(self, batch, index)

    SingleStageDistillation.training_step = long


# SIGTERM: see test_chaos_in_short
@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_a_run_that_is_asked_to_stop_finishes_the_step_saves_and_says_so(settings, tmp_path, number, code):
    children = Children(["run", *settings(tmp_path, "singlestage")], prepare=partial(make_a_long_step, 0.5))
    assert "in the step\n" in children.stdout
    children.send_signal(number)
    output = children.finish(code)
    assert "stopped in stage single; run the same command again to continue" in output
    assert [*(tmp_path / "store" / ".work").glob("single_stage-*/step-*3.ckpt")]


def test_ctrl_c_twice_leaves_at_once(settings, finished, console, tmp_path):
    arguments = settings(tmp_path, "singlestage", "checkpoint.every_steps=1")
    children = Children(["run", *arguments], prepare=partial(make_a_long_step, 600))
    for expected in ("in the step", "bitkd: finishing the step and saving; Ctrl-C again leaves at once"):
        assert any(line.startswith(expected) for line in children.stdout)
        children.send_signal(signal.SIGINT)
    output = children.finish(code=130)
    assert "interrupted twice; run the same command again" in output
    assert "Traceback" not in output
    run(load_config(arguments), console)
    assert read_weights(tmp_path) == read_weights(finished)


def test_a_run_that_had_other_processes_says_what_is_computed_again(settings, runs):
    file = runs / "rte" / "singlestage" / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"processes": 2}))

    class FirstLine:
        def print(self, text):
            raise StoppedError(text)

    with pytest.raises(
        StoppedError, match="this run had 2 processes until now and has 1: stages that train are computed"
    ):
        run(load_config(settings(runs)), FirstLine())


def launch_two_ranks(port):
    """Make two ranks out of the calling process, which stays as their launcher.

    Rank 1 is far slower to miss it: it first sees the connection to rank 0 closed.
    """
    for rank in range(2):
        if os.fork() == 0:
            signals.WATCH_SECONDS = 240 * rank + 0.1
            os.environ.update(place_of(rank, 2, port))
            os.write(1, f"rank {os.getpid()}\n".encode())
            return
    signal.pause()


def test_ranks_follow_a_launcher_that_was_killed(settings, tmp_path):
    steps = ["trainer.devices=2", "train.max_steps=5000", "train.eval_every=5000"]
    arguments = ["run", *settings(tmp_path, "singlestage", *steps)]
    launcher = Children(arguments, prepare=partial(launch_two_ranks, free_port()))
    ranks = []
    for line in launcher.stdout:
        if line.startswith("rank "):
            ranks.append(int(line.split()[1]))
        if line.startswith("stage 1 of 4: teacher"):
            break
    launcher.send_signal(signal.SIGKILL)
    output = launcher.finish(-signal.SIGKILL)  # ends when the ranks have closed their side of the pipe
    assert output.count("the launcher is gone; run the same command again to resume") == 2
    assert len(ranks) == 2
    deadline = time.monotonic() + 10  # a process closes its pipes before it is gone
    while any(map(is_there, ranks)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_there, ranks))


def is_there(pid):
    """Whether a process lives; one that its parent has not asked for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_chaos_in_short(tmp_path, tiny_bert, tiny_task):
    """`make chaos` with two kills and few steps: rank 1 is killed, then asked to stop; rank 0 follows each time. Both launchers
    run the whole pipeline to the same bytes."""
    script = Path(__file__).parents[2] / "experiments" / "chaos" / "chaos.py"
    steps = ["checkpoint.every_steps=1", "train.max_steps=2", "stages.general.max_steps=14"]
    steps += ["stages.stage1_binary.max_steps=14"]
    settings = make_settings(tiny_bert, tiny_task, tmp_path / "unused", "multistage", *steps)
    words = [word for word in settings if not word.startswith(("pipeline=", "run.dir="))]
    options = ["--out", str(tmp_path / "chaos"), "--kills", "2", "--seed", "28056", "--pipelines", "multistage"]
    command = [sys.executable, str(script), *options, "--", *words]
    environment = os.environ | ENVIRONMENT
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "chaos" / "record.json").read_text())
    kills = [(kill["stage"], kill["signal"], kill["target"], kill["code"]) for kill in record["kills"]]
    assert kills == [("general", "SIGKILL", "rank 1", 1), ("stage1_binary", "SIGTERM", "rank 1", 75)]
    assert record["artifacts"] == 8
    lines = (tmp_path / "chaos" / "whole.log").read_text().splitlines()
    begun = [line.split(":")[0] for line in lines if line.startswith("stage ")]
    assert list(dict.fromkeys(begun)) == [f"stage {k} of 8" for k in range(1, 9)]
    assert len([line for line in lines if line.startswith("run: ")]) == 1  # one rank prints
