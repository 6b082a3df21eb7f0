from dataclasses import replace

import pytest

from bitkd.config.load import load_config
from bitkd.data.task_kinds import KINDS_OF_TASKS
from bitkd.pipeline.identity import identity_of
from bitkd.pipeline.plan import make_plan
from bitkd.processes import machine

AUGMENTED = ["task.augmentation.enabled=true", "trainer.accelerator=cpu"]


@pytest.fixture
def identities(settings, finished):
    """The identity of each stage of a multistage run on augmented rows."""

    def read(*changes):
        plan = make_plan(load_config(settings(finished, "multistage", *AUGMENTED, *changes)))
        return {stage.name: identity_of(stage, plan.sources) for stage in plan.stages}

    return read


def differences(before, after):
    """Stage -> what differs in its identity."""
    assert before.keys() == after.keys()
    return {
        stage: changed
        for stage in before
        if (changed := {k for k in before[stage] | after[stage] if before[stage].get(k) != after[stage].get(k)})
    }


def test_padding_to_the_limit_is_in_the_identity_of_stages_that_train_on_the_tasks_rows(identities):
    trained = ["teacher", "stage1", "stage2", "ternary", "stage1_binary", "stage2_binary"]
    changed = differences(identities(), identities("data.pad_to_max_length=true"))
    assert changed == {stage: {"padded_length"} for stage in trained}


def test_what_a_setting_of_an_earlier_version_said_keeps_its_fingerprint(identities):
    """Published runs are found again by the names that their fingerprints were made with."""
    before = identities()
    plain = before["stage1"]
    assert plain["loss"]["include_padding"] is False
    assert not {"padding", "mean_over_classes", "optimizer", "warmup_epochs"} & {*plain["loss"], *plain["train"]}
    zero = ["data.pad_to_max_length=true", "stages.stage1.loss.padding=zero"]
    other = ["stages.stage2.loss.mean_over_classes=true", "stages.stage2.optimizer=bert_adam"]
    clip = ["stages.ternary.quant.ste_clip=2.5", "stages.ternary.quant.forward_clip=true"]
    changed = identities(*zero, *other, *clip, "stages.stage1.warmup_epochs=1")
    assert changed["ternary"]["quant"] == before["ternary"]["quant"] | {"ste_clip": 2.5, "forward_clip": True}
    assert "forward_clip" not in before["ternary"]["quant"]
    assert changed["stage1"]["loss"] == plain["loss"] | {"include_padding": True}
    assert changed["stage1"]["train"].keys() - plain["train"].keys() == {"warmup_epochs"}
    assert "warmup_ratio" not in changed["stage1"]["train"]
    assert changed["stage2"]["loss"]["mean_over_classes"] is True
    assert changed["stage2"]["train"]["optimizer"] == "bert_adam"
    left = identities(zero[0], "stages.stage1.loss.padding=leave")["stage1"]["loss"]
    assert left not in (plain["loss"], changed["stage1"]["loss"])


def test_only_stages_that_may_keep_what_they_got_have_another_identity(identities):
    """Teachers and students of General KD are found again by the names that they had."""
    counting = {name for name, found in identities().items() if "candidates" in found}
    assert counting == {"stage1", "stage2", "ternary", "stage1_binary", "stage2_binary"}
    last = identities("stages.stage1.select=last", "stages.ternary.select=last", "stages.general.select=best")
    assert {name for name, found in last.items() if "candidates" in found} == counting - {"stage1", "ternary"} | {
        "general"
    }


def test_teacher_intervention_is_in_an_identity_where_there_is_one(identities):
    before = identities("stages.stage1.loss.intervention_share=0.5")
    assert before == identities()
    assert not {"intervention", "intervention_share"} & before["stage1"]["loss"].keys()
    changed = identities("stages.stage1.loss.intervention=map")
    assert differences(before, changed) == {"stage1": {"loss"}}
    assert changed["stage1"]["loss"] == before["stage1"]["loss"] | {"intervention": "map", "intervention_share": 0.25}
    assert "attention_map" not in before["stage1"]["loss"]


def test_a_stage_that_mixes_in_its_teachers_tensors_keeps_no_logits(identities):
    assert "keep_teacher_logits" in identities()["stage2"]
    for change in ("loss.intervention=output", "loss.extra.attention_map=1", "loss.extra.attention_output=1"):
        assert "keep_teacher_logits" not in identities(f"stages.stage2.{change}")["stage2"]


def test_augmented_rows_whose_texts_are_read_apart_have_another_identity(identities, monkeypatch):
    before, kind = identities(), KINDS_OF_TASKS["text_classification"]
    monkeypatch.setitem(KINDS_OF_TASKS, kind.name, replace(kind, texts_per_row=2))
    assert differences(before, identities()) == {"augment": {"texts"}}


def test_a_shape_without_sizes_of_its_own_has_the_identity_that_it_had_before_there_were_any(identities):
    before = identities("student.width=1")
    assert before["general"]["shape"].keys() == {"layers", "width", "init", "hidden_size", "dropout"}
    changed = differences(before, identities("student.width=1", "student.heads=2", "student.intermediate_size=9"))
    assert changed == {"general": {"shape", "importance_rows"}}


def test_the_precision_of_augmentation_in_an_identity_is_the_one_that_computes(identities, monkeypatch):
    monkeypatch.setattr(machine, "read_cpu_fields", lambda: {"model name": "x"})
    found = {}
    for has_bf16 in (False, True):
        monkeypatch.setattr(machine, "_cpu_has_bf16", lambda: has_bf16)  # noqa: B023 - called at once
        found[has_bf16] = identities()
    assert differences(found[False], found[True]) == {"augment": {"spec"}}
    specs = {has_bf16: found[has_bf16]["augment"].pop("spec") for has_bf16 in found}
    assert specs[True] == specs[False] | {"precision": "bf16-mixed"}
    assert specs[False]["precision"] == "32-true"
    # A precision that is named is the same as one that `auto` chose.
    for has_bf16, precision in ((False, "32-true"), (True, "bf16-mixed")):
        assert identities(f"task.augmentation.precision={precision}")["augment"]["spec"] == specs[has_bf16]
