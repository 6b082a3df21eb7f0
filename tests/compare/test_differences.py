import itertools
import time
from dataclasses import replace

import numpy as np
import pytest

from bitkd.compare.arms import make_arms
from bitkd.compare.differences import differences, interval
from bitkd.compare.pairing import pairs
from bitkd.compare.runs import Predictions
from bitkd.store.records import BudgetRecord


def with_predictions(run, labels, predicted):
    """The run with these dev labels, predicted by its final stage; a perfect teacher."""
    accuracy = float(np.mean(np.array(labels) == np.array(predicted)))
    dev = {"dev": {"accuracy": accuracy, "f1": accuracy, "loss": 0.0}}
    final = replace(run.final, predictions={"dev": Predictions(labels, predicted)}, score=accuracy, dev=dev)
    teacher = replace(run.teacher, predictions={"dev": Predictions(labels, labels)}, score=1.0)
    return replace(run, stages=[teacher, *run.stages[1:-1], final])


def enumerated(rights):
    """Every bootstrap difference with its chance, by hand: rights[seed] = (rights of A, rights of B) by row."""
    seeds, rows = len(rights), len(rights[0][0])
    values = []
    for drawn in itertools.product(range(rows), repeat=rows):
        for chosen in itertools.product(range(seeds), repeat=seeds):
            pairs = [np.mean([rights[s][0][i] - rights[s][1][i] for i in drawn]) for s in chosen]
            values.append(np.mean(pairs))
    return np.sort(np.array(values))


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_interval_is_that_of_all_resamples_written_out(run_of, seeds):
    labels = [1.0, 0.0, 1.0, 1.0]
    said = {  # by seed: singlestage, multistage
        1: ([1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0]),
        2: ([1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0]),
    }
    runs, rights = [], []
    for seed in list(said)[:seeds]:
        single, multi = said[seed]
        runs.append(with_predictions(run_of("singlestage", seed), labels, single))
        runs.append(with_predictions(run_of("multistage", seed), labels, multi))
        rights.append([[float(p == y) for p, y in zip(given, labels)] for given in (multi, single)])
    exact = enumerated(rights)
    (found,) = differences(make_arms(runs), resamples=40_000)
    assert (found.first, found.second) == ("multistage", "singlestage")
    assert found.difference == pytest.approx(np.mean([np.mean(np.subtract(*pair)) for pair in rights]))
    # Both are discrete: the ends lie on the same steps unless a step's share is 2.5 % to within the noise.
    assert (found.low, found.high) == pytest.approx(interval(exact), abs=1e-9)
    assert found.resampled == ("rows" if seeds == 1 else "rows and seeds")
    assert found.seeds == list(said)[:seeds]


def test_the_same_rows_are_resampled_for_both_arms(run_of):
    """Arms that err on the same rows differ by nothing, however the rows are resampled."""
    labels = [float(i % 2) for i in range(50)]
    said = [1.0] * 50
    runs = [with_predictions(run_of(name, 1), labels, said) for name in ("multistage", "singlestage")]
    (found,) = differences(make_arms(runs))
    assert (found.difference, found.low, found.high) == (0, 0, 0)


def test_arms_without_a_common_seed_are_resampled_apart(run_of):
    (found,) = differences(make_arms([run_of("multistage", 1), run_of("multistage", 2), run_of("singlestage", 3)]))
    assert found.seeds == []
    assert found.resampled == "rows and seeds"
    assert found.low < found.difference < found.high


def test_common_seeds_alone_are_paired(run_of):
    runs = [run_of("multistage", 1), run_of("multistage", 2), run_of("singlestage", 2)]
    (found,) = differences(make_arms(runs))
    assert found.seeds == [2]
    assert found.difference == pytest.approx(runs[1].final.score - runs[2].final.score)


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
    first = differences(arms)
    assert time.process_time() - began < 5
    assert differences(arms) == first
