from dataclasses import replace

import pytest

from bitkd.compare.arms import Mean, make_arms
from bitkd.compare.comparison import Comparison, warnings_of
from bitkd.compare.runs import Predictions
from bitkd.errors import InputError
from bitkd.store.records import BudgetRecord


def change_stage(run, name, **changes):
    return replace(run, stages=[replace(s, **changes) if s.name == name else s for s in run.stages])


def test_seeds_of_one_pipeline_and_budget_are_one_arm(run_of):
    runs = [run_of("singlestage", 2), run_of("multistage", 1), run_of("singlestage", 1)]
    arms = make_arms(runs)
    assert [(arm.label, arm.seeds) for arm in arms] == [("singlestage", [1, 2]), ("multistage", [1])]
    scores = [run.final.score for run in arms[0].runs]
    assert arms[0].final.mean == pytest.approx(sum(scores) / 2)
    assert arms[0].final.deviation == pytest.approx(abs(scores[0] - scores[1]) / 2**0.5)
    assert arms[1].final == Mean(runs[1].final.score, None, 1)


def test_budgets_part_arms(run_of):
    budget = BudgetRecord("steps", 600, {"single": 0.5, "single_binary": 0.5})
    arms = make_arms([run_of("singlestage", 1), replace(run_of("singlestage", 1), budget=budget)])
    assert [arm.label for arm in arms] == ["singlestage (no budget)", "singlestage (600 steps)"]


def test_a_label_begins_with_what_other_arms_do_not_have(run_of):
    """One setting each is changed in six arms: no label is a list of what they have in common."""
    names = [f"x{number}" for number in range(6)]
    runs = [replace(run_of("singlestage", 1), settings=dict.fromkeys(names, 0) | {name: 1}) for name in names]
    labels = [arm.label for arm in make_arms(runs)]
    assert all(label.startswith(f"singlestage ({name}=1, ") for name, label in zip(names, labels))


def test_costs_are_counted_with_and_without_general_kd_and_the_teacher_apart(run_of):
    arm = make_arms([run_of("multistage", seed) for seed in (1, 2)])[0]
    stages = {stage.name: stage for stage in arm.first.stages}
    chain = [stage for name, stage in stages.items() if name != "teacher"]
    assert arm.chain.steps == sum(stage.steps for stage in chain) == 600 + 5 * 300
    assert arm.without_general.steps == arm.chain.steps - 600
    assert arm.shared.steps == 500
    for name in ("steps", "examples", "student_flops", "teacher_flops", "seconds"):
        general = getattr(stages["general"], name)
        assert getattr(arm.chain, name) - getattr(arm.without_general, name) == pytest.approx(general)
    products = sum(stage.student_flops + stage.teacher_flops + stage.importance_flops for stage in chain)
    assert arm.chain.flops == products
    assert arm.chain.importance_flops == stages["general"].importance_flops > 0
    assert arm.chain.training_seconds == pytest.approx(arm.chain.steps * (0.31 - 0.03 - 0.01))
    assert arm.chain.seconds_per_tflop == pytest.approx(arm.chain.training_seconds / (products / 1e12))
    assert arm.num_stages == 7


def test_a_run_given_twice_counts_once(run_of):
    assert len(make_arms([run_of("singlestage", 1), run_of("singlestage", 1)])[0].runs) == 1


def test_runs_that_cannot_stand_beside_each_other_are_refused(run_of):
    run = run_of("singlestage", 1)
    other = change_stage(run, "single", key="other")
    with pytest.raises(InputError, match="with seed 1, but not the same run; leave one out"):
        make_arms([run, other])
    with pytest.raises(InputError, match=r"different tasks \(mrpc, rte\)"):
        make_arms([run, replace(run, task="rte")])
    with pytest.raises(InputError, match="by other labels or metrics"):
        make_arms([run, replace(run_of("multistage", 1), metric="f1")])
    with pytest.raises(InputError, match=r"different dev rows \(dev: 408 rows, dev: 400 rows"):
        make_arms([run, run_of("multistage", 1, rows=400)])
    with pytest.raises(InputError, match=r"differ in more than their seeds .*300.* against .*200"):
        make_arms([run, run_of("singlestage", 2, steps=200)])
    with pytest.raises(InputError, match=r"recorded with accuracy 0.1000, but its predictions give"):
        make_arms([change_stage(run, "single_binary", score=0.1)])
    with pytest.raises(InputError, match="keeps no predictions of dev"):
        make_arms([change_stage(run, "single_binary", predictions=None)])


def test_different_teachers_of_one_seed_are_named_first(run_of):
    runs = [run_of("singlestage", 1), change_stage(run_of("multistage", 1), "teacher", key="teacher-other")]
    warnings = warnings_of(make_arms(runs))
    assert warnings[0].startswith("Different teachers at seed 1: singlestage against multistage.")
    several = make_arms([run_of(arm, seed) for arm in ("singlestage", "multistage") for seed in (1, 2)])
    # each seed has a teacher of its own, the same for both
    assert not any("teachers" in warning for warning in warnings_of(several))


def test_devices_and_single_seeds_are_named(run_of):
    runs = [run_of("singlestage", 1), change_stage(run_of("multistage", 1), "ternary", device="a GPU")]
    texts = " ".join(warnings_of(make_arms(runs)))
    assert "different devices (a GPU, 1 process, 32-true; x86_64, 1 process, 32-true)" in texts
    assert "One seed:" in texts


def test_arms_over_different_seeds_are_named(run_of):
    arms = make_arms([run_of("singlestage", 1), run_of("singlestage", 2), run_of("multistage", 1)])
    warning = warnings_of(arms)[-1]
    assert "over different seeds (singlestage: 1, 2; multistage: 1)" in warning
    many = [run_of(name, 1) for name in ("multistage", "progressive", "halfternary", "splitdirect")]
    arms = make_arms([run_of("singlestage", 1), run_of("singlestage", 2), *many])
    assert "(singlestage: 1, 2; 4 arms: 1)" in " ".join(warnings_of(arms))


def test_a_student_that_predicts_one_label_only_is_named(run_of):
    run = run_of("singlestage", 1)
    labels = run.final_predictions.labels
    predictions = {"dev": Predictions(labels, [1.0] * len(labels))}
    stuck = change_stage(run, "single_binary", predictions=predictions, score=labels.count(1.0) / len(labels))
    arms = make_arms([stuck])
    assert warnings_of(arms)[0].startswith(
        "With seed 1 the final student of singlestage predicts the same for every dev row of mrpc: it learned nothing"
    )
    assert Comparison.of([stuck]).retained[0].mean == pytest.approx(0)
