import itertools
import time
from dataclasses import replace

import numpy as np
import pytest

from bitkd.compare.arms import make_arms
from bitkd.compare.comparison import Comparison
from bitkd.compare.inference import holm, percentiles
from bitkd.compare.pairing import pairs
from bitkd.compare.resampling import RESAMPLES
from bitkd.compare.runs import Predictions
from bitkd.report.tables import FEW_SEEDS, difference_table, questions
from bitkd.store.records import BudgetRecord
from tests.compare.synthetic import differences


def with_predictions(run, labels, predicted):
    """The run with these dev labels, predicted by its final stage; a perfect teacher."""
    accuracy = float(np.mean(np.array(labels) == np.array(predicted)))
    dev = {"dev": {"accuracy": accuracy, "f1": accuracy, "loss": 0.0}}
    final = replace(run.final, predictions={"dev": Predictions(labels, predicted)}, score=accuracy, dev=dev)
    teacher = replace(run.teacher, predictions={"dev": Predictions(labels, labels)}, score=1.0)
    return replace(run, stages=[teacher, *run.stages[1:-1], final])


def test_the_interval_of_the_models_is_that_of_all_resamples_written_out(run_of):
    labels = [1.0, 0.0, 1.0, 1.0]
    said = {"singlestage": [1.0, 1.0, 1.0, 1.0], "multistage": [0.0, 1.0, 0.0, 1.0]}
    runs = [with_predictions(run_of(name, 1), labels, predicted) for name, predicted in said.items()]
    right = {name: np.equal(predicted, labels) for name, predicted in said.items()}
    effect = right["multistage"].astype(float) - right["singlestage"]
    exact = [effect[list(rows)].mean() for rows in itertools.product(range(4), repeat=4)]
    (found,) = differences(make_arms(runs), resamples=40_000)
    assert (found.first, found.second) == ("multistage", "singlestage")
    assert found.estimate.value == pytest.approx(effect.mean())
    assert found.estimate.rows == pytest.approx(percentiles(np.array(exact)), abs=1e-9)
    assert (found.estimate.interval(), found.estimate.p, found.p_holm) == (None, None, None)


def test_the_same_rows_are_resampled_for_both_arms(run_of):
    """Arms that err on the same rows differ by nothing, however the rows are resampled."""
    labels = [float(i % 2) for i in range(50)]
    said = [1.0] * 50
    runs = [with_predictions(run_of(name, 1), labels, said) for name in ("multistage", "singlestage")]
    (found,) = differences(make_arms(runs))
    assert (found.estimate.value, *found.estimate.rows) == (0, 0, 0)


def test_all_seeds_count_whether_or_not_both_arms_have_them(run_of):
    runs = [run_of("multistage", seed) for seed in (1, 2, 3)] + [run_of("singlestage", seed) for seed in (3, 4, 5, 6)]
    (found,) = differences(make_arms(runs))
    means = [np.mean([run.final.score for run in chosen]) for chosen in (runs[:3], runs[3:])]
    assert found.estimate.value == pytest.approx(means[0] - means[1])
    assert [arm.seeds for arm in found.estimate.seed_variances] == [3, 4]
    low, high = found.estimate.interval()
    assert low < found.estimate.value < high


def test_p_values_are_corrected_for_the_differences_that_have_one(runs_of, run_of):
    runs = [*runs_of(("singlestage", "multistage", "progressive"), (1, 2, 3)), run_of("halfternary", 1)]
    found = {(one.first, one.second): one for one in differences(make_arms(runs))}
    with_p = [one for one in found.values() if one.estimate.p is not None]
    assert len(with_p) == 2
    assert [one.p_holm for one in with_p] == holm([one.estimate.p for one in with_p])
    assert found["halfternary", "singlestage"].p_holm is None


def test_every_arm_is_compared_with_singlestage_and_the_ablations_against_theirs(runs_of):
    found = [(first.label, second.label) for first, second in pairs(make_arms(runs_of()))]
    assert found == [
        ("multistage", "singlestage"),
        ("progressive", "singlestage"),
        ("halfternary", "singlestage"),
        ("splitdirect", "singlestage"),
        ("multistage", "halfternary"),
        ("multistage", "splitdirect"),
    ]
    others = make_arms(runs_of(("halfternary", "progressive")))
    assert [(a.label, b.label) for a, b in pairs(others)] == [("progressive", "halfternary")]


def test_arms_of_equal_budget_are_compared(run_of):
    def of(pipeline, total):
        return replace(
            run_of(pipeline, 1),
            budget=BudgetRecord("steps", total, {pipeline: 1.0}),
            name=f"{pipeline}{total}",
        )

    arms = make_arms([of(pipeline, total) for pipeline in ("multistage", "singlestage") for total in (100, 200)])
    assert [(a.label, b.label) for a, b in pairs(arms)][:2] == [
        ("multistage (100 steps)", "singlestage (100 steps)"),
        ("multistage (200 steps)", "singlestage (200 steps)"),
    ]


def test_thousands_of_resamples_take_seconds(runs_of):
    arms = make_arms(runs_of())
    began = time.process_time()
    first = differences(arms, RESAMPLES)
    assert time.process_time() - began < 5
    assert differences(arms, RESAMPLES) == first


def test_without_an_interval_for_other_seeds_a_sentence_says_why_once(run_of):
    def shown(*seeds):
        comparison = Comparison.of([run_of(name, seed) for name in ("singlestage", "multistage") for seed in seeds])
        return "95 %, other seeds" in difference_table(comparison).header, FEW_SEEDS in questions(comparison)

    assert shown(1, 2) == (False, True)
    assert shown(1, 2, 3) == (True, False)
