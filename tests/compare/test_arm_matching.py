"""Which runs are one arm, by their settings, and which arms are compared."""

from dataclasses import replace

import pytest

from bitkd.compare.arms import make_arms
from bitkd.compare.checks import check_same_stages
from bitkd.compare.comparison import warnings_of
from bitkd.compare.pairing import pairs
from bitkd.config.comparable import result_settings
from bitkd.config.load import load_config
from bitkd.config.schema import Config, StageSpec
from bitkd.errors import InputError
from bitkd.store.records import BudgetRecord
from tests.compare.synthetic import make_one


def with_settings(run, **settings):
    return replace(run, settings={name.replace("__", "."): value for name, value in settings.items()})


def of_budget(run, total):
    return replace(run, budget=BudgetRecord("steps", total, {"single": 1.0}))


def test_settings_part_arms_and_name_them():
    runs = [
        with_settings(make_one("singlestage", seed), stages__single__lr=lr, stages__single__title="x", train__lr=0.1)
        for seed, lr in ((1, 0.0001), (2, 0.0001), (1, 0.0005), (2, 0.0005))
    ]
    arms = make_arms([*runs, make_one("multistage", 1)])
    assert [(arm.label, arm.seeds) for arm in arms] == [
        ("singlestage (stages.single.lr=0.0001)", [1, 2]),
        ("singlestage (stages.single.lr=0.0005)", [1, 2]),
        ("multistage", [1]),
    ]


def test_settings_of_stages_that_others_lack_name_an_arm_where_nothing_else_does():
    plain = with_settings(make_one("singlestage", 1), task__augmentation__enabled=False)
    rows = with_settings(make_one("singlestage", 1), task__augmentation__enabled=True, stages__augment__kind="augment")
    labels = [arm.label for arm in make_arms([plain, rows])]
    assert labels == [f"singlestage (task.augmentation.enabled={value})" for value in ("false", "true")]
    more = with_settings(make_one("singlestage", 1), task__augmentation__enabled=False, stages__more__kind="split")
    assert [arm.label for arm in make_arms([plain, more])] == ["singlestage", "singlestage (stages.more.kind=split)"]


def test_long_distinctions_are_cut():
    runs = [with_settings(make_one("singlestage", 1), **{f"x{i}": value for i in range(6)}) for value in (1, 2)]
    assert make_arms(runs)[0].label == "singlestage (x0=1, x1=1, x2=1, x3=1, …)"


def test_runs_of_one_arm_have_the_same_stages_in_and_out_of_the_chain():
    first, second = (make_one("singlestage", seed) for seed in (1, 2))
    twin = replace(second.stages[0], name="teacher_two")
    with pytest.raises(InputError, match="differ in more than their seeds"):
        check_same_stages([first, replace(second, stages=[second.stages[0], twin, *second.stages[1:]])])
    with pytest.raises(InputError, match=r"differ in more than their seeds \(teacher, finetune against teacher_two"):
        check_same_stages([first, replace(second, stages=[twin, *second.stages[1:]])])


def test_every_pair_is_compared_once():
    singles = [with_settings(make_one("singlestage", 1), lr=lr) for lr in (1, 2, 3)]
    found = pairs(make_arms([*singles, make_one("multistage", 1)]))
    assert [(a.label, b.label) for a, b in found] == [
        (label, "singlestage (lr=1)") for label in ("singlestage (lr=2)", "singlestage (lr=3)", "multistage")
    ]
    ablation = pairs(make_arms([make_one(name, 1) for name in ("multistage", "halfternary")]))
    assert [(a.label, b.label) for a, b in ablation] == [("multistage", "halfternary")]


def test_arms_are_compared_with_the_most_similar_one():
    runs = [
        with_settings(make_one(pipeline, 1), embedding_bits=bits, stages__ternary__student=pipeline)
        for bits in (None, 32)
        for pipeline in ("multistage", "halfternary")
    ]
    arms = make_arms(runs)
    assert {(0, 1), (2, 3)} <= {(arms.index(a), arms.index(b)) for a, b in pairs(arms)}


def test_an_arm_is_compared_with_an_earlier_one_of_its_own_budget():
    runs = [
        of_budget(with_settings(make_one("singlestage", 1), lr=lr), total) for total in (500, 1000) for lr in (1, 2)
    ]
    arms = make_arms(runs)
    found = [(arms.index(a), arms.index(b)) for a, b in pairs(arms)]
    assert found == [(1, 0), (2, 0), (3, 2)]


def test_runs_on_other_rows_or_models_are_another_arm():
    one, other = (
        with_settings(make_one("singlestage", seed), **{"content of model": content})
        for seed, content in ((1, "a"), (2, "b"))
    )
    assert [arm.label for arm in make_arms([one, other])] == [
        "singlestage (content of model=a)",
        "singlestage (content of model=b)",
    ]


def test_a_difference_of_budgets_is_named_first():
    equal = [of_budget(make_one(name, 1), 600) for name in ("progressive", "singlestage")]
    assert not any("Budgets differ" in text for text in warnings_of(make_arms(equal)))
    warnings = warnings_of(make_arms([equal[0], of_budget(make_one("singlestage", 1), 900)]))
    assert warnings[0].startswith("Budgets differ (progressive: 600 steps; singlestage: 900 steps)")
    assert sum("Budgets differ" in text for text in warnings) == 1


def test_what_decides_no_number_is_no_setting(settings, tmp_path):
    def of(*more):
        return result_settings(load_config(settings(tmp_path, "singlestage", *more)))

    plain = of()
    silent = ["seed=7", "run.name=x", "logger=wandb", "data.num_workers=2", "checkpoint.every_minutes=1",
              "trainer.log_every_n_steps=3",
              "model.pretrained=elsewhere", "data.dir=elsewhere", "stages.single.title=X"]  # fmt: skip
    assert of(*silent) == plain
    assert "seed" not in plain
    assert of("stages.single.lr=0.5") == plain | {"stages.single.lr": 0.5}
    assert (
        of("data.segments=1", "data.hub_corpus.name=x", "task.augmentation.variants=7") == plain
    )  # nothing reads them
    augmented = of("task.augmentation.enabled=true", "task.augmentation.variants=7")
    assert augmented == plain | augmented | {"task.augmentation.enabled": True, "task.augmentation.variants": 7}
    assert set(of("budget.steps=9")) - set(plain) >= {"budget.steps"}


def test_a_given_teacher_counts_but_not_where_it_lies():
    first, second = (Config(stages={"teacher": StageSpec(kind="finetune", checkpoint=place)}) for place in "ab")
    assert result_settings(first) == result_settings(second)
    assert result_settings(first) != result_settings(Config(stages={"teacher": StageSpec(kind="finetune")}))


def test_settings_of_other_kinds_of_tasks_tell_no_runs_apart():
    classes, answers = (
        result_settings(load_config([f"task={task}", "pipeline=singlestage"])) for task in ("rte", "squad")
    )
    assert not any(name.startswith(("task.windows", "task.answers", "task.kind")) for name in classes)
    assert answers["task.windows.overlap"] == 128
