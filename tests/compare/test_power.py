"""How many seeds and rows a next study needs."""

import json
import math
import re
import subprocess
import sys
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.random import default_rng

from bitkd.cli import main
from bitkd.compare.arms import make_arms
from bitkd.compare.inference import Estimate, SeedVariance, estimate
from bitkd.compare.planning import planned, row_influence
from bitkd.compare.power import ArmVariance, Components, components, mean_components
from bitkd.compare.record_file import to_json
from bitkd.compare.resampling import row_weights
from bitkd.errors import InputError
from bitkd.store.records import StudyRecord
from experiments.bench.simulated import SST2, Population

PILOT = Path(__file__).parents[2] / "experiments" / "pilot"
ROWS = 872
BOTH = 0.0475 / ROWS


def sst2(deviation, rows=ROWS):
    """Accuracy on SST-2 as the pilot's arms have it, of a difference of two arms whose seeds deviate so much."""
    arm = ArmVariance(deviation**2 + BOTH * ROWS / rows, BOTH * ROWS / rows, 2)
    return Components(0.0215 / rows, 0.0, (arm, arm))


@pytest.mark.parametrize(
    ("margin", "deviation", "by_seeds"),
    [
        (0.01, 0.0156, (0.05, 0.07, 0.12, 0.18, 0.27, 0.35, 0.51)),
        (0.02, 0.0156, (0.11, 0.17, 0.32, 0.56, 0.76, 0.88, 0.98)),
        (0.01, 0.004, (0.09, 0.15, 0.24, 0.35, 0.42, 0.46, 0.51)),
    ],
)
def test_the_power_that_simulated_studies_of_rows_have(margin, deviation, by_seeds):
    found = [sst2(deviation).power(margin, seeds) for seeds in (2, 3, 5, 10, 20, 40, math.inf)]
    assert found == pytest.approx(by_seeds, abs=0.015)


@pytest.mark.parametrize("deviations", [(0.02, 0.02), (0.03, 0.0)])
def test_a_planned_study_finds_its_difference_as_often_as_simulated_ones(deviations):
    arms = tuple(ArmVariance(one**2 + BOTH, BOTH, 5) for one in deviations)
    found = Components(0.0215 / ROWS, 0.0, arms)
    random, seeds, margin = default_rng(3), 5, 0.03
    hits, equal = [], []
    for value in random.normal(margin, found.variance(seeds) ** 0.5, 1500):
        seen = [arm.between / seeds * random.chisquare(seeds - 1) / (seeds - 1) for arm in arms]
        both = min(found.both / seeds, sum(seen))
        parts = tuple(SeedVariance(one, seeds) for one in seen)
        of_study = Estimate(value, (0, 0), found.rows + found.both / seeds, both, parts)
        hits.append(of_study.p < 0.05 and value > 0)
        equal.append(max(map(abs, replace(of_study, value=value - margin).interval())) < margin)
    assert found.power(margin, seeds) == pytest.approx(np.mean(hits), abs=0.04)
    assert found.equality(margin, seeds) == pytest.approx(np.mean(equal), abs=0.04)


def test_more_seeds_or_rows_never_lower_the_power_and_unlimited_seeds_are_the_limit():
    seeds, times = (5, 6, 10, 40, 400, math.inf), (1, 2, 100)
    for deviation in (0.0, 0.0156):
        table = np.array([[sst2(deviation).power(0.01, S, f) for f in times] for S in seeds])
        assert (np.diff(table, axis=0) > -1e-3).all()
        assert (np.diff(table, axis=1) > -1e-3).all()
        assert sst2(deviation).power(0.01, 1e6) == pytest.approx(table[-1, 0], abs=1e-3)
        assert sst2(deviation).power(0.01, 10, 4) == pytest.approx(sst2(deviation, 4 * ROWS).power(0.01, 10))
    assert sst2(0.0156).power(0.0, 5) == pytest.approx(0.025, abs=0.005)


def test_the_seeds_and_rows_that_are_needed_are_the_fewest():
    found = sst2(0.0156)
    needed = found.seeds_needed(0.02)
    assert found.power(0.02, needed) >= 0.8 > found.power(0.02, needed - 1)
    assert found.seeds_needed(0.01) is None
    times = found.times_needed(0.01)
    assert times * ROWS == pytest.approx(1690, abs=5)
    assert found.power(0.01, math.inf, times) == pytest.approx(0.8)
    smallest, low, high = replace(found, rows_error=found.rows / 4).detectable()
    assert found.power(smallest, math.inf) == pytest.approx(0.8)
    assert low < smallest < high
    assert sst2(0.0).seeds_needed(0.5) == 3


def test_the_parts_of_simulated_studies():
    population = Population("accuracy", SST2, (0.0156, 0.0156), (0, 0))
    weights = np.concatenate(list(row_weights(ROWS, 1500))) / ROWS
    random, found = default_rng(5), []
    for _ in range(120):
        labels, predicted, _ = population.draw(random, ROWS, (2, 2))
        right = (np.concatenate(predicted) == labels).T.astype(float)
        arms, moves = (weights @ right), right - right.mean(axis=0)
        found.append(components(arms[:, :2], arms[:, 2:], (moves[:, :2], moves[:, 2:])))
    rows = [one.rows * ROWS for one in found]
    assert np.mean(rows) == pytest.approx(0.022, rel=0.1)
    assert np.mean([one.rows_error * ROWS for one in found]) == pytest.approx(np.std(rows), rel=0.25)
    assert np.mean([one.both for one in found]) == pytest.approx(2 * BOTH, rel=0.1)
    assert np.mean([sum(arm.between for arm in one.arms) for one in found]) == pytest.approx(
        2 * (0.0156**2 + BOTH), rel=0.2
    )


def test_a_study_of_the_same_size_has_the_variance_and_the_shares_of_the_estimate():
    random = default_rng(1)
    parts = random.normal(0, 0.01, (2, 1, 3)), random.normal(0, 0.01, (2, 50, 1)), random.normal(0, 0.005, (2, 50, 3))
    first, second = 0.8 + sum(parts)
    found, expected = components(first, second, (np.zeros((9, 3)),) * 2), estimate(first, second)
    assert found.variance(3) == pytest.approx(expected.variance)
    assert astuple(found.shares(3)) == pytest.approx(astuple(expected.shares))
    assert found.variance(math.inf, 2) == found.rows / 2


def test_the_influence_of_rows_is_that_of_right_and_wrong_answers(run_of):
    (arm,) = make_arms([run_of("multistage", seed) for seed in (1, 2)])
    labels = np.array(arm.first.final_predictions.labels)
    right = np.array([run.final_predictions.predicted for run in arm.runs]) == labels
    assert row_influence(arm) == pytest.approx((right - right.mean(axis=1, keepdims=True)).T)


def test_the_mean_over_tasks_has_the_variance_of_a_mean():
    one, other = sst2(0.0156), sst2(0.004, 408)
    found = mean_components([one, other])
    assert found.variance(5, 2) == pytest.approx((one.variance(5, 2) + other.variance(5, 2)) / 4)
    assert found.seed_deviation()[0] == pytest.approx(((0.0156**2 + 0.004**2) / 2) ** 0.5)
    assert one.seed_degrees == pytest.approx(2)


RECORD = StudyRecord(["progressive", "singlestage"], ["mrpc"], [1, 2], 2.0, 0.01, "2026-01-01T00:00:00+00:00")


def test_which_difference_is_taken(runs_of):
    runs = runs_of(("multistage", "progressive", "singlestage", "halfternary"))

    def taken(runs, *primary, **settings):
        found = planned(runs, primary, **settings)
        return f"{found.first} - {found.second}", found.margin, found.alpha

    of_study = [replace(run, study=RECORD) for run in runs]
    assert taken(of_study) == ("progressive - singlestage", 2.0, 0.01)
    assert taken(of_study, "halfternary", "multistage", margin=1.5) == ("halfternary - multistage", 1.5, 0.01)
    assert taken(runs) == ("multistage - singlestage", 1.0, pytest.approx(0.05))
    assert taken([run for run in runs if run.pipeline != "singlestage"])[0] == "progressive - multistage"


def test_what_cannot_be_planned_is_refused(run_of, runs_of):
    runs = runs_of(("multistage", "singlestage"))
    other = replace(run_of("singlestage", 3), settings={"stages.single.lr": 0.1})
    for given, primary, message in (
        (runs[:2], (), "on mrpc there is one arm alone, multistage; .* add runs of another pipeline"),
        (runs[:3], (), "singlestage has one seed on mrpc .* add runs of it with other seeds"),
        (runs, ("multistage", "single"), "no runs of single on mrpc, but of multistage, singlestage; .* --primary"),
        ([*runs, other], ("multistage", "singlestage"), "singlestage has 2 arms on mrpc"),
        ([*runs, *(replace(run, task="rte") for run in runs[:2])], (), "on rte there is one arm alone"),
        (
            [replace(run, study=replace(RECORD, margin=run.seed)) for run in runs],
            (),
            "name 2 studies .*; give the runs of one, or --primary FIRST,SECOND and --margin",
        ),
    ):
        with pytest.raises(InputError, match=message):
            planned(given, primary)


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--margin", "0"], "--margin=0"), (["--margin", "nan"], "--margin=nan"), (["--primary", "one"], "--primary=one")],
)
def test_wrong_options_are_refused(words, message, capsys):
    assert main(["power", "nowhere", *words]) == 2
    assert message in capsys.readouterr().err


def test_the_power_of_the_pilots_runs(capsys):
    code = "import sys; from bitkd.cli import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    arguments = ["power", str(PILOT / "mrpc"), str(PILOT / "sst2" / "comparison.json")]
    text = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True).stdout
    assert text.startswith("multistage − singlestage (the runs name no study")
    assert "on mrpc (408 rows; 2 and 2 seeds) and sst2 (872 rows; 2 and 2 seeds), mean over the tasks" in text
    assert "a true difference of 1 point (95 % interval above 0)" in text
    assert re.search(
        r"no number of seeds gives .* at 1 point. \d+ seeds per arm and [\d,]+ rows of mrpc and [\d,]+ rows of sst2",
        text,
    )
    assert "2.0 degrees of freedom, from 8 runs, so that" in text
    assert "The seeds at hand have one teacher and one General KD: how that varies is in no number here" in text
    assert "No study names these tasks together" in text
    assert main(["power", str(PILOT / "mrpc"), "--margin", "5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    enough = [cell["power"] >= 0.8 for cell in found["power"] if cell["times_rows"] == 1]
    assert enough == [(cell["seeds"] or math.inf) >= found["seeds_needed"] for cell in found["power"][::3]]
    assert found["power"][-1]["seeds"] is None
    assert found["detectable"]["low"] < found["detectable"]["value"] < found["detectable"]["high"]


def test_seeds_that_do_not_differ_are_said_to_tell_little(run_of, tmp_path, capsys):
    first = {name: run_of(name, 1) for name in ("multistage", "singlestage")}
    runs = [replace(run, seed=seed, name=f"{name}-{seed}") for name, run in first.items() for seed in (1, 2)]
    (tmp_path / "comparison.json").write_text(to_json(runs))
    assert main(["power", str(tmp_path)]) == 0
    assert "show no difference between seeds" in capsys.readouterr().out
    assert main(["power", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seed_deviation"] is None
