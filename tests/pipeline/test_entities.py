"""A task of tagged words through a pipeline."""

import json

import pytest
import yaml
from safetensors.torch import load_file

from bitkd.config.load import load_config
from bitkd.pipeline.runner import StageFailedError, run
from bitkd.stages.base import StudentModule
from bitkd.stages.single_stage import SingleStageDistillation
from tests.conftest import make_settings

SENTENCE = ["the/O", "big/B-ANIMAL", "dog/I-ANIMAL", "runs/O", "in/O", "the/O", "red/B-PLACE", "park/I-PLACE", "./O"]


@pytest.fixture
def overrides(tiny_bert, tiny_task, tmp_path):
    """Settings of a short pipeline; the long sentences have two windows."""
    rows = [SENTENCE[number % 3 :] * (1 + number % 2) for number in range(24)]
    for name, part in (("train", rows[:18]), ("dev", rows[18:])):
        (tmp_path / f"{name}.conll").write_text("\n\n".join("\n".join(row) for row in part).replace("/", "\t"))
    task = {
        "name": "tagged",
        "kind": "token_classification",
        "text": ["word"],
        "labels": ["O", "B-ANIMAL", "I-ANIMAL", "B-PLACE", "I-PLACE"],
        "metric": "entity_f1",
        "metrics": ["entity_f1", "entity_recall"],
        "files": {"train": "train.conll", "dev": {"dev": "dev.conll"}},
    }
    student = {"kind": "single_stage", "student": "teacher", "teacher": "teacher"}
    stages = {
        "teacher": {"kind": "finetune", "max_steps": 15, "lr": 0.01},
        "student": {**student, "quant": {"weight_bits": 1, "activation_bits": 8}},
    }
    (tmp_path / "task.yaml").write_text(yaml.safe_dump({"task": task}))
    (tmp_path / "short.yaml").write_text(yaml.safe_dump({"pipeline": {"name": "short"}, "stages": stages}))

    def made(runs, *more):
        more = (f"task={tmp_path / 'task.yaml'}", f"data.dir={tmp_path}", "data.max_length=16", *more)
        more = (*more, "train.max_steps=2", "checkpoint.every_steps=1")
        return make_settings(tiny_bert, tiny_task, tmp_path / runs, tmp_path / "short.yaml", *more)

    return made


def test_a_cut_stage_resumes_to_the_same_bytes_and_keeps_each_rows_entities(overrides, console, tmp_path, monkeypatch):
    original = StudentModule.training_step

    def cut(self, batch, batch_idx):
        if isinstance(self, SingleStageDistillation) and batch_idx == 1:
            raise RuntimeError("cut")
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(StudentModule, "training_step", cut)
        with pytest.raises(StageFailedError, match="stage student failed"):
            run(load_config(overrides("cut")), console)
    run(load_config(overrides("cut")), console)
    assert any(line.endswith("student goes on at step 1 of 2") for line in console.lines)
    run(load_config(overrides("whole")), console)
    one, other = (tmp_path / runs / "tagged" / "short" for runs in ("cut", "whole"))
    for name in ("model.safetensors", "predictions.safetensors"):
        assert (one / "student" / name).read_bytes() == (other / "student" / name).read_bytes()

    kept = load_file(one / "teacher" / "predictions.safetensors")
    values = json.loads((one / "teacher" / "metrics.json").read_text())["dev"]
    matched, predicted = kept["dev.logits"].sum(0).tolist()
    assert kept["dev.labels"].tolist() == [2, 4] * 3
    assert values["entity_f1"] == pytest.approx(2 * matched / (predicted + 18))
    assert matched > 0
    assert values["entity_recall"] == pytest.approx(matched / 18)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("task.labels=[B-ANIMAL,I-ANIMAL]", "have no O"),
        ("task.windows.overlap=14", "windows that share 14 do not move on; use 0 to 13"),
        ("task.augmentation.enabled=true", "belong to words of the texts"),
        ("task.files.dev.dev=nowhere.conll", "has no nowhere.conll"),
    ],
)
def test_settings_that_do_not_fit_are_refused(setting, message, overrides, capsys):
    from bitkd.cli import main

    assert main(["plan", *overrides("runs", setting)]) == 2
    assert message in capsys.readouterr().err
