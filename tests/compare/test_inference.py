"""What a difference says of other rows and other seeds."""

import numpy as np
import pytest
from numpy.random import default_rng
from scipy import stats

from bitkd.compare.inference import Estimate, SeedVariance, estimate, holm, mean_of
from bitkd.compare.resampling import row_weights
from experiments.bench.simulated import MRPC, SST2, Population


def studied(population, rows, seeds, studies, resamples=250):
    """Scores (1 + resamples, seeds) of the arms of simulated studies; those of accuracy need no more than a product."""
    weights = np.concatenate(list(row_weights(rows, resamples))) / rows
    random = default_rng(5)
    for _ in range(studies):
        labels, predicted, _ = population.draw(random, rows, seeds)
        right = (np.concatenate(predicted) == labels).T.astype(float)
        yield np.split(weights @ right, np.cumsum(seeds)[:-1], axis=1)


def test_the_interval_holds_the_truth_in_95_of_100_studies():
    population = Population("accuracy", SST2, (0.0156, 0.0156), (0, 0.01))
    intervals = [estimate(second, first).interval() for first, second in studied(population, 872, (3, 3), 300)]
    assert 0.92 <= np.mean([low <= 0.01 <= high for low, high in intervals]) <= 0.98


def test_equal_arms_seldom_seem_to_differ():
    pairs = ((1, 0), (2, 0), (3, 0), (4, 0), (1, 3), (1, 4))
    population = Population("accuracy", MRPC, (0.0117,) * 5, (0,) * 5)
    p_values = [
        [estimate(arms[a], arms[b]).p for a, b in pairs]
        for arms in studied(population, 408, (3,) * 5, 300, resamples=100)
    ]
    assert np.mean([min(holm(p)) < 0.05 for p in p_values]) <= 0.06


FIRST = np.array([[0.80, 0.82, 0.87], [0.83, 0.86, 0.89], [0.78, 0.79, 0.86], [0.80, 0.83, 0.87]])
SECOND = np.array(
    [[0.76, 0.78, 0.83, 0.77], [0.76, 0.79, 0.83, 0.78], [0.77, 0.77, 0.82, 0.77], [0.75, 0.78, 0.84, 0.76]]
)


def test_the_formula_written_out():
    found = estimate(FIRST, SECOND)
    first, second = FIRST[1:], SECOND[1:]
    rows = (first.mean(axis=1) - second.mean(axis=1)).var(ddof=1)
    both = sum(
        max(0, (a.var(axis=0, ddof=1).mean() - a.mean(axis=1).var(ddof=1)) / (a.shape[1] - 1)) for a in (first, second)
    )
    seeds = FIRST[0].var(ddof=1) / 3, SECOND[0].var(ddof=1) / 4
    variance = rows + sum(seeds) - both
    degrees = variance**2 / (seeds[0] ** 2 / 2 + seeds[1] ** 2 / 3)
    assert found.value == pytest.approx(0.83 - 0.785)
    assert (found.variance, found.degrees) == pytest.approx((variance, degrees))
    assert degrees > 2
    student = stats.t(degrees, 0.045, variance**0.5)
    assert found.interval() == pytest.approx(student.interval(0.95))
    assert found.interval(0.8) == pytest.approx(student.interval(0.8))
    assert found.p == pytest.approx(2 * student.cdf(0))
    assert (found.shares.rows, found.shares.seeds, found.shares.both) == pytest.approx(
        ((rows - both) / variance, (sum(seeds) - both) / variance, both / variance)
    )
    assert found.detectable() == pytest.approx(student.ppf(0.975) + student.ppf(0.8) - 0.09)
    assert found.rows == pytest.approx(tuple(np.quantile(first.mean(axis=1) - second.mean(axis=1), [0.025, 0.975])))


@pytest.mark.parametrize("seeds", [(2, 3), (4, 2), (1, 1), (1, 4)])
def test_fewer_than_three_seeds_say_nothing_of_others(seeds):
    found = estimate(SECOND[:, : seeds[0]], SECOND[:, : seeds[1]])
    assert found.rows[0] <= found.value <= found.rows[1]
    unknown = (found.variance, found.degrees, found.error, found.interval(), found.p, found.shares, found.detectable())
    assert unknown == (None,) * 7


def test_the_variance_is_never_below_that_of_the_rows():
    """Seeds that differ less than rows × seeds alone would make them differ."""
    alike = np.array([[0.75, 0.75, 0.75], [1, 0.75, 0.5], [0.5, 1, 0.75], [0.75, 0.5, 1], [0.5, 0.5, 0.5]])
    constant = np.full((5, 3), 0.5)
    found = estimate(alike, constant)
    assert 0 < found.variance == found.rows_variance
    assert found.degrees == np.inf
    same = estimate(constant, constant)
    assert (same.interval(), same.p, same.shares, same.detectable()) == ((0, 0), 1, None, 0)
    assert estimate(constant, constant / 2).p == 0


def test_the_mean_over_tasks_adds_their_variances():
    one = Estimate(0.03, (0.0, 0.06), 4e-4, 1e-4, (SeedVariance(3e-4, 3), SeedVariance(2e-4, 5)))
    other = Estimate(-0.01, (-0.03, 0.01), 1e-4, 0.0, (SeedVariance(0.0, 3), SeedVariance(1e-4, 3)))
    found = mean_of([one, other])
    assert found.value == pytest.approx(0.01)
    assert found.variance == pytest.approx((one.variance + other.variance) / 4)
    assert found.degrees == pytest.approx((8e-4 + 2e-4) ** 2 / (9e-8 / 2 + 4e-8 / 4 + 1e-8 / 2))
    assert found.rows == pytest.approx((0.01 - 1.96 * 5e-4**0.5 / 2, 0.01 + 1.96 * 5e-4**0.5 / 2), abs=1e-5)
    few = Estimate(0.0, (-0.1, 0.1), 1e-4)
    assert mean_of([one, few]).interval() is None
    assert mean_of([one]) == one


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1, 1]
    assert holm([]) == []
