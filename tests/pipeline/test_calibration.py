"""Stages whose activations have learned steps: started from the stage's rows, resumed, named by what they depend on."""

import pytest
import torch

from bitkd.config.load import load_config
from bitkd.data.batches import LoaderSpec
from bitkd.errors import InputError
from bitkd.models.artifact import load_student
from bitkd.models.calibration import calibrate
from bitkd.models.prepare import prepare
from bitkd.pipeline.identity import identity_of
from bitkd.pipeline.plan import make_plan
from bitkd.pipeline.runner import run
from bitkd.quant.spec import QuantSpec

PIPELINE = """
pipeline: {name: steps}
student: {hidden_act: relu}
budget: {shares: {two: 0.5, one: 0.5}}
stages:
  teacher: {kind: finetune}
  init: {kind: init, student: teacher}
  two:
    kind: single_stage
    student: init
    teacher: teacher
    select: last
    quant: {weight_bits: 1, activation_bits: 2}
  one:
    kind: single_stage
    student: two
    teacher: two
    select: last
    quant: {weight_bits: 1, activation_bits: 1, attention_activations: true}
"""


@pytest.fixture
def pipeline(tmp_path):
    (tmp_path / "steps.yaml").write_text(PIPELINE)
    return str(tmp_path / "steps.yaml")


def test_a_stage_starts_from_one_batch_of_its_own_rows(pipeline, settings, console, tmp_path):
    """A learning rate of 0 keeps the start."""
    plan = run(
        load_config(settings(tmp_path, pipeline, "train.scales_lr=0", "train.lr=0", "stages.one.max_steps=1")), console
    )
    found = load_student(tmp_path / "rte" / "steps" / "two")
    again = prepare(load_student(tmp_path / "rte" / "steps" / "init"), QuantSpec(weight_bits=1, activation_bits=2))
    calibrate(again, plan.sources.task_module(LoaderSpec(batch_size=32, seed=0)).importance_batches(32))
    assert all(torch.equal(found.state_dict()[name], value) for name, value in again.state_dict().items())


def test_a_budget_counts_the_flops_of_stages_that_learn_steps(pipeline, settings, tmp_path):
    plan = make_plan(load_config(settings(tmp_path, pipeline, "budget.flops=1e9", "train.max_steps=null")))
    assert all(plan[name].total_steps > 0 for name in ("two", "one"))


def test_the_rate_of_what_is_learned_is_in_the_names_of_stages_that_learn_it(pipeline, settings, tmp_path):
    def identities(*more):
        plan = make_plan(load_config(settings(tmp_path, pipeline, *more)))
        return {stage.name: identity_of(stage, plan.sources) for stage in plan.stages}

    before, after = identities(), identities("train.scales_lr=1e-3")
    assert {name for name in before if before[name] != after[name]} == {"two", "one"}
    assert before["two"]["train"]["scales_lr"] == 1e-4
    assert "scales_lr" not in before["teacher"]["train"]
    assert before["init"]["shape"]["hidden_act"] == "relu"
    assert "hidden_act" not in identities("student.hidden_act=null")["init"]["shape"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("student.hidden_act=mish", "hidden_act=mish"),
        ("train.scales_lr=2", r"train\.scales_lr=2\.0 is outside 0 to 1"),
        ("stages.two.scales_lr=-1", r"stages\.two\.scales_lr=-1\.0 is outside"),
    ],
)
def test_wrong_settings_are_refused(pipeline, settings, tmp_path, setting, message):
    with pytest.raises(InputError, match=message):
        make_plan(load_config(settings(tmp_path, pipeline, setting)))
