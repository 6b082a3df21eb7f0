"""Stages that read only the teacher's logits train on logits that were computed once."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import bitkd.pipeline.teacher_logits as kept_logits
from bitkd.config.load import load_config
from bitkd.errors import StoppedError
from bitkd.models.artifact import load_student
from bitkd.pipeline.plan import make_plan
from bitkd.pipeline.runner import run
from bitkd.stages.prediction import PredictionDistillation
from tests.conftest import read_record


@pytest.fixture
def arguments(settings, finished, tmp_path):
    """Gives the settings of a run whose only training is Stage-II KD with a finished teacher."""
    pipeline = tmp_path / "second.yaml"
    pipeline.write_text(
        "pipeline: {name: second}\n"
        "student: {layers: [1, 3], dropout: 0.0}\n"
        "stages:\n"
        f"  teacher: {{kind: finetune, checkpoint: {finished / 'rte' / 'singlestage' / 'teacher'}}}\n"
        "  init: {kind: init, student: teacher}\n"
        "  stage2: {kind: prediction, student: init, teacher: teacher, select: last}\n"
    )

    def make(folder, *more, steps=24):
        steps = [f"train.max_steps={steps}", "train.eval_every=100", "train.lr=1e-3"]
        return settings(tmp_path / folder, str(pipeline), *steps, *more)

    return make


@pytest.fixture
def forwards(monkeypatch):
    """The modes in which a stage asked for its teacher's outputs: True for each time that the teacher itself ran."""
    seen = []
    ask = PredictionDistillation.ask_teacher

    def count(self, batch):
        seen.append(self.runs_teacher)
        return ask(self, batch)

    monkeypatch.setattr(PredictionDistillation, "ask_teacher", count)
    return seen


def result(tmp_path, folder):
    return load_student(tmp_path / folder / "rte" / "second" / "stage2").state_dict()


def logits_files(tmp_path, folder):
    return sorted((tmp_path / folder / "cache" / "logits").glob("*"))


def test_training_on_kept_logits_is_training_with_the_teacher(arguments, console, forwards, tmp_path):
    run(load_config(arguments("in_steps", "trainer.keep_teacher_logits=never")), console)
    assert all(forwards)
    forwards.clear()
    run(load_config(arguments("kept", "trainer.accumulate_grad_batches=2")), console)
    # The FLOPs are counted with the module's own loss, so that these questions count too.
    assert forwards
    assert not any(forwards)
    assert "stage2: the teacher's logits of 96 rows are kept" in console.lines
    torch.testing.assert_close(result(tmp_path, "kept"), result(tmp_path, "in_steps"), atol=1e-5, rtol=0)
    assert not logits_files(tmp_path, "in_steps")

    per_step, once = (read_record(tmp_path / folder, "second", "stage2")[0] for folder in ("in_steps", "kept"))
    assert (
        0.8 * per_step["student"] < once["student"] <= per_step["student"]
    )  # shorter parts, padded to their own lengths
    assert 0.4 < once["teacher"] / per_step["teacher"] < 0.7  # 96 rows once, 24 · 8 rows


def test_logits_are_kept_for_other_stages_and_made_again_if_damaged(arguments, console, tmp_path):
    run(load_config(arguments("one")), console)
    (file,) = logits_files(tmp_path, "one")
    whole = load_file(file)["logits"].clone()
    assert whole.shape == (96, 2)
    assert torch.isfinite(whole).all()
    file.write_bytes(file.read_bytes()[:-3] + b"abc")
    run(load_config(arguments("one", "seed=7")), console)
    assert torch.equal(load_file(file)["logits"], whole)
    assert sum("are kept" in line for line in console.lines) == 2
    spent = read_record(tmp_path / "one", "second", "stage2")[0]["teacher"]
    run(load_config(arguments("one", "seed=8", "data.eval_batch_size=5")), console)
    assert "stage2: the teacher's logits of 96 rows were kept before" in console.lines
    assert logits_files(tmp_path, "one") == [file]
    # The cost does not depend on what was kept before.
    assert read_record(tmp_path / "one", "second", "stage2")[0]["teacher"] == spent


def test_rows_are_held_out_or_augmented_and_still_have_their_own_logits(arguments, console, monkeypatch, tmp_path):
    """Row numbers are those of the file where rows are held out, and those of the source rows in augmented shards."""
    seen = []

    def compare(self, batch):
        found = ask(self, batch)
        if len(batch["index"]) > 1:  # one row: the FLOPs of a made-up one are counted
            assert not self.runs_teacher
            expected = self.teacher(**kept_logits.model_inputs(batch, self.teacher)).logits
            seen.append(float((found.logits - expected).abs().max()))
        return found

    ask = PredictionDistillation.ask_teacher
    monkeypatch.setattr(PredictionDistillation, "ask_teacher", compare)
    augmented = ["task.augmentation.enabled=true", "task.augmentation.variants=1", "data.selection=holdout"]
    run(load_config(arguments("rows", *augmented, "trainer.keep_teacher_logits=always")), console)
    run(load_config(arguments("held_out", "data.selection=holdout")), console)
    assert len(seen) == 2 * 24
    assert max(seen) < 1e-5


def test_auto_keeps_logits_where_more_rows_are_seen_than_there_are(arguments):
    def keeps(*more, steps=24):
        config = load_config(arguments("plan", *more, steps=steps))
        return make_plan(config)["stage2"].keeps_logits(config.trainer.keep_teacher_logits, config.task)

    assert keeps()
    assert not keeps(steps=12)  # 96 rows
    assert keeps(steps=13)
    assert keeps("trainer.keep_teacher_logits=always", steps=1)
    assert not keeps("trainer.keep_teacher_logits=never")
    assert not keeps("stages.stage2.kind=single_stage")
    assert keeps("stages.stage2.kind=single_stage", "stages.stage2.loss.hidden=0", "stages.stage2.loss.attention=0")


def test_a_process_may_have_no_batch(monkeypatch):
    def gather(parts, own):
        parts[:] = [((torch.arange(3), torch.ones(3, 2)), [3, 12, 48]), own]

    monkeypatch.setattr(kept_logits, "_batches", lambda context, data: iter(()))
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    context = SimpleNamespace(group=SimpleNamespace(device="cpu", world_size=2))
    kept = kept_logits._compute(context, torch.nn.Linear(1, 1), None, None, (3, 2))
    assert torch.equal(kept.logits, torch.ones(3, 2))


def test_a_stop_while_logits_are_computed_leaves_nothing_half_done(arguments, console, monkeypatch, tmp_path):
    monkeypatch.setattr(kept_logits, "BATCH_ROWS", 8)
    batches, seen = kept_logits._batches, []

    def stop_at_third(context, data):
        for batch in batches(context, data):
            seen.append(batch)
            if len(seen) == 3:
                context.stopping.received = 15
            yield batch

    monkeypatch.setattr(kept_logits, "_batches", stop_at_third)
    with pytest.raises(StoppedError):
        run(load_config(arguments("stopped")), console)
    assert len(seen) == 3
    assert not logits_files(tmp_path, "stopped")
    run(load_config(arguments("stopped")), console)
    record = json.loads((tmp_path / "stopped" / "rte" / "second" / "stage2" / "stage.json").read_text())
    assert record["steps"] == 24
