"""All techniques at once: a chain from four bits of activations down to one, each stage taught by the one before."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from bitkd.config.load import load_config
from bitkd.models.artifact import load_student
from bitkd.models.encoder import read_spec
from bitkd.models.packed import pack_student
from bitkd.models.unpacked import unpack_student
from bitkd.pipeline.plan import make_plan
from bitkd.pipeline.runner import StageFailedError, run
from bitkd.quant.inputs import InputQuantizer
from bitkd.quant.modules import QuantLinear
from bitkd.stages.base import StudentModule
from tests.conftest import read_record, read_weights

PIPELINE = """
pipeline: {name: techniques}
student: {hidden_act: relu}
stages:
  teacher: {kind: finetune}
  general:
    {kind: general, student: pretrained, teacher: pretrained, seed: 0, quant: {weight_bits: 1, activation_bits: 8, per_row: true}}
  four_levels:
    kind: single_stage
    student: general
    teacher: teacher
    quant: {weight_bits: 2, levels: 4, activation_bits: 8, per_row: true, column_scales: true, embedding_bits: 4}
  a4: &low
    kind: single_stage
    student: four_levels
    teacher: four_levels
    quant: &bits
      weight_bits: 1
      activation_bits: 4
      attention_activations: true
      per_row: true
      column_scales: true
      learned_scales: true
      embedding_bits: 4
    loss: {attention: 0, extra: {attention_map: 1, attention_output: 1}, intervention: gradual, intervention_share: 0.5}
  a2: {<<: *low, student: a4, teacher: a4, quant: {<<: *bits, activation_bits: 2}}
  a1: {<<: *low, select: last, student: a2, teacher: a2, quant: {<<: *bits, activation_bits: 1}}
"""


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    file = tmp_path_factory.mktemp("pipelines") / "techniques.yaml"
    file.write_text(PIPELINE)
    return file


def test_all_techniques_work_together(settings, console, pipeline, tmp_path, monkeypatch):
    overrides = settings(tmp_path / "one", pipeline, "checkpoint.every_steps=1")
    config = load_config(overrides)
    run(config, console)
    folder = tmp_path / "one" / "rte" / "techniques"
    student = load_student(folder / "a1")
    assert read_spec(student).quant == config.stages["a1"].quant
    assert student.config.hidden_act == "relu"
    down = student.bert.encoder.layer[0].output.dense.input_quantizer
    assert not down.signed
    assert down.shift.abs().max() > 0

    record = json.loads((folder / "a4" / "stage.json").read_text())
    assert [step for step, _ in record["curve"]] == [0, 2, 4]  # the student that it got counts
    weights = load_file(folder / "a1" / "model.safetensors")
    layers = [module for module in student.modules() if isinstance(module, QuantLinear)]
    steps = [module for module in student.modules() if isinstance(module, InputQuantizer) and module.bits == 1]
    assert len(steps) == len(layers) + 4 * student.config.num_hidden_layers
    assert all(layer.weight_scale is not None and layer.column_scale is not None for layer in layers)
    assert sum(name.endswith("column_scale") for name in weights) == len(layers)

    packed = pack_student(student)
    batch = {"input_ids": torch.arange(5, 25).reshape(2, 10), "attention_mask": torch.ones(2, 10, dtype=torch.long)}
    with torch.no_grad():
        assert torch.equal(packed(**batch).logits, unpack_student(packed)(**batch).logits)

    # Stopped in the middle of its last stage, the chain ends with the same bytes.
    again = tmp_path / "two"
    shutil.copytree(tmp_path / "one", again, symlinks=True)
    for stage in (again / "store").glob("single_stage-*"):
        if stage.name == (folder / "a1").resolve().name:
            shutil.rmtree(stage)
    original = StudentModule.training_step

    def cut(self, batch, batch_idx):
        if batch_idx == 3:
            raise RuntimeError("cut")
        return original(self, batch, batch_idx)

    monkeypatch.setattr(StudentModule, "training_step", cut)
    other = settings(again, pipeline, "checkpoint.every_steps=1")
    with pytest.raises(StageFailedError, match="stage a1 failed: RuntimeError: cut"):
        run(load_config(other), console)
    monkeypatch.undo()
    run(load_config(other), console)
    assert "stage 6 of 6: a1 goes on at step 3 of 4" in console.lines
    assert read_weights(again, "techniques") == read_weights(tmp_path / "one", "techniques")
    assert read_record(again, "techniques", "a1") == read_record(tmp_path / "one", "techniques", "a1")


@pytest.mark.parametrize(
    "change", ["column_scales=false", "learned_scales=false", "embedding_bits=8", "activation_bits=2"]
)
def test_each_technique_makes_another_stage(settings, pipeline, tmp_path, change):
    one, two = (
        {stage.name: stage.key for stage in make_plan(load_config(settings(tmp_path, pipeline, *more))).stages}
        for more in ((), (f"stages.a4.quant.{change}",))
    )
    assert {name for name in one if one[name] != two[name]} == {"a4", "a2", "a1"}
