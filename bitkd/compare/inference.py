"""What a difference between two arms says of other dev rows and other seeds: intervals, p values, shares of the variance.

A score is taken as the sum of a mean, a part of the dev rows, a part of the seed, and a part of both (a row that one seed
gets wrong and another right). The mean difference of two arms then has the variance

    rows (both arms are scored on the same ones) + seeds of each arm / their number + rows × seeds / the same number

Resampling the rows with all seeds kept as they are shows the first and the last part; the variance between the seeds of an arm
shows the second and the last. Their sum counts the last part twice, so it is subtracted once. Degrees of freedom after
Satterthwaite (1946), as in Welch's test: seeds of two arms have nothing in common, so they are not paired.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bitkd.compare.question import MIN_SEEDS
from bitkd.compare.scores import Array

ALPHA = 0.05
LEVEL = 1 - ALPHA
POWER = 0.8


@dataclass(frozen=True)
class SeedVariance:
    """What the seeds of one arm add to the variance of a mean or a difference."""

    variance: float
    """Variance between the scores of the seeds (n - 1) / number of seeds."""

    seeds: int


@dataclass(frozen=True)
class Shares:
    """Parts of a variance, which add up to 1."""

    rows: float
    seeds: float
    both: float
    """Rows × seeds: smaller with more rows, and with more seeds."""


@dataclass(frozen=True)
class Estimate:
    """A difference of two arms' mean scores, or its mean over tasks."""

    value: float
    rows: tuple[float, float]
    """The 95 % interval of these very models on other dev rows. It says nothing of other seeds."""

    rows_variance: float
    """Variance of the difference of these models over resampled dev rows; it holds that of rows × seeds."""

    both_variance: float | None = None
    """The part of rows × seeds, which is counted in `rows_variance` and in `seed_variances`; None if an arm has fewer than
    three seeds.
    """

    seed_variances: tuple[SeedVariance, ...] = ()
    """Of each arm (and task); empty if an arm has fewer than three seeds."""

    @property
    def variance(self) -> float | None:
        """Of the difference, over the populations of rows and seeds; None if an arm has fewer than three seeds."""
        if self.both_variance is None:
            return None
        return self.rows_variance + sum(part.variance for part in self.seed_variances) - self.both_variance

    @property
    def degrees(self) -> float | None:
        """Degrees of freedom of the variance; infinite if seeds do not differ at all."""
        if self.variance is None:
            return None
        uncertain = sum(part.variance**2 / (part.seeds - 1) for part in self.seed_variances)
        fewest = min(part.seeds for part in self.seed_variances) - 1
        return max(self.variance**2 / uncertain, fewest) if uncertain > 0 else math.inf

    @property
    def error(self) -> float | None:
        """The standard error of the difference, over the populations of rows and seeds."""
        return None if self.variance is None else math.sqrt(self.variance)

    def interval(self, level: float = LEVEL) -> tuple[float, float] | None:
        """The interval for other rows and other seeds; None if an arm has fewer than three seeds."""
        if self.error is None or self.degrees is None:
            return None
        half = _quantile(self.degrees, (1 + level) / 2) * self.error
        return self.value - half, self.value + half

    @property
    def p(self) -> float | None:
        """Two-sided p value of no difference; None if an arm has fewer than three seeds."""
        if self.error is None or self.degrees is None:
            return None
        if self.error == 0:
            return 1.0 if self.value == 0 else 0.0
        return 2 * _below(self.degrees, -abs(self.value) / self.error)

    @property
    def shares(self) -> Shares | None:
        """Where the variance comes from; None if there is none, or an arm has fewer than three seeds."""
        if self.both_variance is None or not self.variance:
            return None
        rows = max(0.0, self.rows_variance - self.both_variance) / self.variance
        seeds = (sum(part.variance for part in self.seed_variances) - self.both_variance) / self.variance
        return Shares(rows, seeds, 1 - rows - seeds)

    def detectable(self, level: float = LEVEL) -> float | None:
        """The true difference that a study like this finds (p < 1 - level) with a chance of 80 %: of the level 0.95, 2.8 standard
        errors with many seeds, 3.7 at four degrees of freedom. None if an arm has fewer than three seeds.
        """
        if self.error is None or self.degrees is None:
            return None
        return (_quantile(self.degrees, (1 + level) / 2) + _quantile(self.degrees, POWER)) * self.error


def estimate(first: Array, second: Array) -> Estimate:
    """The difference first - second.

    first, second: scores (1 + resamples, seeds) of the two arms, of the dev set itself and of its resamples, which are the same
    rows for all seeds of both arms; the numbers of seeds may differ.
    """
    differences = first.mean(axis=1) - second.mean(axis=1)
    resampled = differences[1:]
    value, rows, variance = float(differences[0]), percentiles(resampled), float(resampled.var(ddof=1))
    arms = (first, second)
    if min(scores.shape[1] for scores in arms) < MIN_SEEDS:
        return Estimate(value, rows, variance)
    seeds = [SeedVariance(float(scores[0].var(ddof=1)) / scores.shape[1], scores.shape[1]) for scores in arms]
    # No larger than what is counted twice: then the variance is never smaller than that of the rows alone.
    both = min(sum(map(both_variance, arms)), sum(part.variance for part in seeds))
    return Estimate(value, rows, variance, both, tuple(seeds))


def both_variance(scores: Array) -> float:
    """Variance of an arm's mean that is due to rows × seeds: what the mean over seeds takes from the variance of one seed."""
    of_one, of_mean = scores[1:].var(axis=0, ddof=1).mean(), scores[1:].mean(axis=1).var(ddof=1)
    return max(0.0, float(of_one - of_mean) / (scores.shape[1] - 1))


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """The mean over tasks, each with dev rows and training runs of its own, so that their variances add up.

    Its `rows` are of a normal distribution: of a sum over thousands of rows, and no resample joins rows of two tasks.
    """
    if len(estimates) == 1:
        return estimates[0]
    tasks = len(estimates)
    value = sum(one.value for one in estimates) / tasks
    rows_variance = sum(one.rows_variance for one in estimates) / tasks**2
    half = _quantile(math.inf, (1 + LEVEL) / 2) * math.sqrt(rows_variance)
    rows = (value - half, value + half)
    known = [one.both_variance for one in estimates if one.both_variance is not None]
    if len(known) < tasks:
        return Estimate(value, rows, rows_variance)
    seeds = (SeedVariance(arm.variance / tasks**2, arm.seeds) for one in estimates for arm in one.seed_variances)
    return Estimate(value, rows, rows_variance, sum(known) / tasks**2, tuple(seeds))


def with_joint_seeds(mean: Estimate, arms: Sequence[Sequence[Array]]) -> Estimate:
    """The mean over tasks where a seed has something in common on all of them, such as its General KD: what a seed adds is
    the variance of its mean over the tasks.

    arms: of each arm, the scores (seeds,) of each task, the seeds in the same order.
    """
    seeds = tuple(
        SeedVariance(float(np.mean(tasks, axis=0).var(ddof=1)) / len(tasks[0]), len(tasks[0])) for tasks in arms
    )
    both = min(mean.both_variance or 0.0, sum(part.variance for part in seeds))
    return replace(mean, seed_variances=seeds, both_variance=both)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values corrected for their number, after Holm (1979): the chance of any false finding among all of them stays
    at the level, however they depend on each other.
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda at: p_values[at])):
        largest = max(largest, min(1.0, p_values[place] * (len(p_values) - rank)))
        corrected[place] = largest
    return corrected


def percentiles(values: Array, level: float = LEVEL) -> tuple[float, float]:
    """The interval between percentiles of resampled values."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


# scipy is imported where it is needed: bad input is refused sooner. `scipy.stats` has the same values, and loads for a second.
def _quantile(degrees: float, chance: float) -> float:
    """Of Student's t distribution."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, chance))


def _below(degrees: float, value: float) -> float:
    """The chance that Student's t is below a value."""
    from scipy.special import stdtr

    return float(stdtr(degrees, value))
