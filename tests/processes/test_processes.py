"""Runs as a user starts them, in processes of their own: killed, and with two ranks."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bitkd.cli import main
from bitkd.config.load import load_config
from bitkd.data.augment import augmenter
from bitkd.errors import StoppedError
from bitkd.models.artifact import load_student
from bitkd.pipeline.runner import run
from tests.conftest import make_settings, read_weights

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def receive_ctrl_c():
    """A shell lets what it starts in the background ignore Ctrl-C; the processes of tests would inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(arguments, launcher=(), module=True):
    command = [*(launcher or [sys.executable, "-m"]), *(["bitkd"] if module else []), *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=ENVIRONMENT, preexec_fn=receive_ctrl_c, **pipes)


def finish(process):
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def test_both_launchers_run_a_whole_pipeline_to_the_same_bytes(settings, tmp_path):
    weights = []
    for name, launcher in (("lightning", [sys.executable, "-m"]), ("torchrun", [*TORCHRUN, "-m"])):
        more = ["trainer.devices=2", "train.max_steps=2"]
        output = finish(start(["run", *settings(tmp_path / name, "multistage", *more)], launcher))
        begun = [line.split(":")[0] for line in output.splitlines() if line.startswith("stage ")]
        assert list(dict.fromkeys(begun)) == [f"stage {k} of 8" for k in range(1, 9)]
        assert len([line for line in output.splitlines() if line.startswith("run: ")]) == 1  # one rank prints
        weights.append({f.parent.name: f.read_bytes() for f in tmp_path.glob(f"{name}/store/*/model.safetensors")})
    assert len(weights[0]) == 8
    assert weights[0] == weights[1]


def test_two_processes_augment_to_the_rows_of_one(settings, tmp_path, monkeypatch, capsys):
    script = tmp_path / "small_shards.py"
    script.write_text(
        "import sys\n"
        "from bitkd.data.augment import augmenter\n"
        "augmenter.BLOCK, augmenter.SHARD_ROWS = 8, 16\n"
        "from bitkd.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )

    def arguments(name, *more):
        return ["augment", *settings(tmp_path / name, "singlestage", *more)[1:]]

    finish(start(arguments("two", "trainer.devices=2"), [*TORCHRUN, str(script)], module=False))
    monkeypatch.setattr(augmenter, "BLOCK", 8)
    monkeypatch.setattr(augmenter, "SHARD_ROWS", 16)
    assert main(arguments("one")) == 0
    made = []
    for name in ("two", "one"):
        shards = sorted((tmp_path / name / "store").glob("augment-*/shard-*.arrow"))
        made.append([(shard.parent.name, shard.name, shard.read_bytes()) for shard in shards])
    assert len(made[0]) == 96 // 16
    assert made[0] == made[1]


def test_a_rank_that_cannot_augment_brings_the_other_down(settings, tmp_path):
    script = tmp_path / "full.py"
    script.write_text(
        "import os, sys\n"
        "from bitkd.pipeline import augmentation\n"
        "def full(*_):\n"
        "    raise OSError('No space left on device')\n"
        "if os.environ.get('LOCAL_RANK', '0') == '0': augmentation.write_shard = full\n"
        "from bitkd.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = ["augment", *settings(tmp_path, "singlestage", "trainer.devices=2")[1:]]
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1  # and both have gone: their pipes are closed
    assert "stage augment failed: OSError: No space left on device" in done.stderr


def test_what_one_rank_died_of_is_printed(settings, tmp_path):
    script = tmp_path / "broken.py"
    script.write_text(
        "import os, sys\n"
        "from bitkd.stages.base import StudentModule\n"
        "step = StudentModule.training_step\n"
        "def broken(self, batch, index):\n"
        "    if os.environ['RANK'] == '1' and index == 1: raise RuntimeError('the cable is loose')\n"
        "    return step(self, batch, index)\n"
        "StudentModule.training_step = broken\n"
        "from bitkd.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = ["run", *settings(tmp_path, "singlestage", "trainer.devices=2")]
    process = subprocess.run(
        [*TORCHRUN, str(script), *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False
    )
    assert process.returncode != 0
    assert "rank 1: stage teacher failed: RuntimeError: the cable is loose" in process.stderr
    assert "cable" in (tmp_path / "rte" / "singlestage" / "teacher.error.rank1.txt").read_text()


def test_two_runs_at_once_compute_each_stage_once(settings, finished, tmp_path):
    runs = [start(["run", *settings(tmp_path, "singlestage", f"run.name={name}")]) for name in ("singlestage", "other")]
    outputs = [finish(process) for process in runs]
    done = [line.split()[4] for output in outputs for line in output.splitlines() if " finished: " in line]
    assert sorted(done) == ["init", "single", "single_binary", "teacher"]
    assert read_weights(tmp_path) == read_weights(finished)
    assert not any((tmp_path / "store" / ".locks").iterdir())


def test_two_processes_with_half_the_batch_train_like_one(settings, finished, console, tmp_path):
    script = tmp_path / "counting.py"
    script.write_text(
        "import contextlib, sys\n"
        "from torch.nn.parallel import DistributedDataParallel as DDP\n"
        "no_sync, skipped = DDP.no_sync, []\n"
        "def counted(self):\n"
        "    skipped.append(1)\n"
        "    return no_sync(self)\n"
        "DDP.no_sync = counted\n"
        "from bitkd.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "print(f'gradients were not synchronized {len(skipped)} times')\n"
        "sys.exit(code)\n"
    )
    pipeline = tmp_path / "one_stage.yaml"
    pipeline.write_text(
        "pipeline: {name: one_stage}\n"
        "student: {layers: [1, 3], dropout: 0.0}\n"
        "stages:\n"
        f"  teacher: {{kind: finetune, checkpoint: {finished / 'rte' / 'singlestage' / 'teacher'}}}\n"
        "  init: {kind: init, student: teacher}\n"
        "  single: {kind: single_stage, student: init, teacher: teacher, select: last, max_steps: 20}\n"
        "  second: {kind: prediction, student: single, teacher: teacher, select: last, max_steps: 20}\n"
    )
    weights, kept, flops, logits, passes = [], [], [], [], []
    for name, more in (("one", []), ("two", ["trainer.devices=2", "trainer.accumulate_grad_batches=2"])):
        arguments = settings(tmp_path / name, str(pipeline), "train.lr=1e-3", "train.eval_every=20", *more)
        if more:
            output = finish(start(arguments, [sys.executable, str(script), "run"], module=False))
        else:
            run(load_config(arguments), console)
        folder = tmp_path / name / "rte" / "one_stage" / "single"
        weights.append(load_student(folder).state_dict())
        kept.append(load_file(folder / "predictions.safetensors"))
        flops.append(json.loads((folder / "stage.json").read_text())["flops"]["student"])
        (file,) = (tmp_path / name / "cache" / "logits").iterdir()
        logits.append(load_file(file)["logits"])
        passes.append(json.loads((folder.parent / "second" / "stage.json").read_text())["flops"]["teacher"])
    assert "not synchronized 40 times" in output
    assert torch.equal(*logits)  # the processes divide the same batches
    assert passes[0] == passes[1]
    assert ": 8 rows = 2 x 2 x 2\n" in output
    torch.testing.assert_close(weights[0], weights[1], atol=1e-5, rtol=0)
    assert kept[0]["dev.labels"].tolist() == kept[1]["dev.labels"].tolist()  # uneven shares, in the rows' order
    torch.testing.assert_close(kept[0]["dev.logits"], kept[1]["dev.logits"], atol=1e-4, rtol=0)
    assert 0.7 * flops[0] < flops[1] <= flops[0]  # each part is padded to its own length


def children_of(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_run_that_is_asked_to_stop_saves_and_says_so(settings, finished, tmp_path):
    slow = ["checkpoint.every_minutes=100", "train.eval_every=100"]
    arguments = ["run", *settings(tmp_path, "singlestage", "train.max_steps=400", *slow)]
    process = start(arguments)
    for line in process.stdout:
        if line.startswith("stage 3 of 4: single "):
            break
    time.sleep(1.0)
    process.send_signal(signal.SIGUSR1)  # SIGTERM: see test_chaos_in_short
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert "stopped in stage single; run the same command again" in output
    assert any((tmp_path / "store" / ".work").glob("single_stage-*/step-*.ckpt"))


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


def test_ranks_follow_a_launcher_that_was_killed(settings, tmp_path):
    steps = ["trainer.devices=2", "train.max_steps=100000", "train.eval_every=100000"]
    process = start(["run", *settings(tmp_path, "singlestage", *steps)], [*TORCHRUN, "-m"])
    for line in process.stdout:
        if line.startswith("stage 1 of 4: teacher"):
            break
    ranks = children_of(process.pid)
    process.kill()
    process.communicate(timeout=30)  # ends when the ranks have closed their side of the pipe
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
    """`make chaos` with two kills and few steps: rank 1 is killed, then asked to stop; rank 0 follows each time."""
    script = Path(__file__).parents[2] / "experiments" / "chaos" / "chaos.py"
    settings = make_settings(
        tiny_bert, tiny_task, tmp_path / "unused", "singlestage", "checkpoint.every_steps=1", "train.max_steps=14"
    )
    words = [word for word in settings if not word.startswith(("pipeline=", "run.dir="))]
    options = ["--out", str(tmp_path / "chaos"), "--kills", "2", "--seed", "154", "--pipelines", "singlestage"]
    command = [sys.executable, str(script), *options, "--", *words]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "chaos" / "record.json").read_text())
    assert [(kill["signal"], kill["target"]) for kill in record["kills"]] == [
        ("SIGKILL", "rank 1"),
        ("SIGTERM", "rank 1"),
    ]
    assert [kill["code"] for kill in record["kills"]] == [1, 75]
    assert record["artifacts"] == 4
