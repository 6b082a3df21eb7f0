"""How likely a study finds a difference, by its number of seeds and dev rows, from the scores of an earlier one.

A score is taken apart as in `bitkd.compare.inference`: into parts of rows, of seeds, and of both. Two seeds of each arm are
enough for a rough size of each part. With S seeds of each arm, and the rows as many times as there are, the difference has the
variance

    rows / times + (seeds of both arms + rows × seeds / times) / S
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.random import default_rng

from bitkd.compare.inference import ALPHA, LEVEL, MIN_SEEDS, POWER, Shares, both_variance
from bitkd.compare.scores import Array

DRAWS = 2000
"""Of the variances that a study sees between its seeds."""

_MOST = 10**6
"""Seeds that are looked at before a number is called unlimited."""


@dataclass(frozen=True)
class ArmVariance:
    """The variance of one seed's score, of one arm."""

    between: float
    """Between seeds, on the rows at hand (n - 1); it holds the part of rows × seeds."""

    both: float
    """The part of rows × seeds."""

    seeds: int
    """That it was computed from."""

    tasks: int = 1
    """Over which the mean is taken: 1, or the variances are those of the score / tasks."""


@dataclass(frozen=True)
class Components:
    """The parts of the variance of a difference, or of its mean over tasks."""

    rows: float
    """Of the dev rows at hand, with unlimited seeds."""

    rows_error: float
    """Standard error of `rows`, over the choice of the rows."""

    arms: tuple[ArmVariance, ...]

    @cached_property
    def both(self) -> float:
        """Of rows × seeds, with one seed of each arm."""
        return sum(arm.both for arm in self.arms)

    @cached_property
    def seeds(self) -> float:
        """Of the seeds, with one of each arm and unlimited rows."""
        return max(0.0, sum(arm.between for arm in self.arms) - self.both)

    @property
    def seed_degrees(self) -> float:
        """Degrees of freedom of the variance between seeds; 0 if no two seeds differ."""
        uncertain = sum(arm.between**2 / (arm.seeds - 1) for arm in self.arms)
        return sum(arm.between for arm in self.arms) ** 2 / uncertain if uncertain > 0 else 0.0

    def seed_deviation(self) -> tuple[float, float, float]:
        """Standard deviation of an arm's score from seed to seed with unlimited rows, over all arms: the estimate, and the ends
        of its 95 % interval. There are none if `seed_degrees` is 0.
        """
        from scipy.special import chdtri

        between, degrees = sum(arm.between for arm in self.arms), self.seed_degrees
        low, high = (
            between * degrees / float(chdtri(degrees, chance)) for chance in ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
        )
        of_arm = [max(0.0, one - self.both) * self.arms[0].tasks ** 2 / len(self.arms) for one in (between, low, high)]
        return math.sqrt(of_arm[0]), math.sqrt(of_arm[1]), math.sqrt(of_arm[2])

    def variance(self, seeds: float, times: float = 1) -> float:
        """Of the difference in a study of so many seeds of each arm, and so many times the rows; either may be infinite."""
        return self.rows / times + (self.seeds + self.both / times) / seeds

    def shares(self, seeds: float, times: float = 1) -> Shares | None:
        """Where the variance comes from; None if there is none."""
        variance = self.variance(seeds, times)
        if variance == 0:
            return None
        return Shares(self.rows / times / variance, self.seeds / seeds / variance, self.both / times / seeds / variance)

    def power(self, difference: float, seeds: float, times: float = 1, alpha: float = ALPHA) -> float:
        """The chance that the interval (`Estimate.interval`) is above 0 if the true difference is this, which is positive.

        It is also the chance that the interval is above -difference ("not worse") if the arms are equal.
        """
        return float(self._chances(difference, seeds, times, alpha).mean())

    def equality(self, margin: float, seeds: float, times: float = 1, alpha: float = ALPHA) -> float:
        """The chance that the interval is between -margin and margin if the arms are equal."""
        return float(np.maximum(0.0, 2 * self._chances(margin, seeds, times, alpha) - 1).mean())

    def _chances(self, difference: float, seeds: float, times: float, alpha: float) -> Array:
        """The chance that the interval is above 0, for each of DRAWS variances that the study may see; one if it is known."""
        from scipy.special import gammaincinv, ndtr, ndtri, stdtrit

        error = math.sqrt(self.variance(seeds, times))
        if error == 0:
            return np.ones(1)
        both, of_seeds = self.both / times / seeds, (self.seeds + self.both / times) / seeds
        if of_seeds == 0:
            return np.array([ndtr(difference / error - ndtri(1 - alpha / 2))])
        # The study will see other variances between its seeds than there are: each arm's is a chi-square number. What seeds
        # add is divided between the arms as it is now; an arm has its part of rows × seeds at least.
        parts = np.array([max(arm.between, arm.both) for arm in self.arms])
        drawn = 2 * gammaincinv((seeds - 1) / 2, (np.arange(DRAWS) + 0.5) / DRAWS) / (seeds - 1)
        random = default_rng(0)
        seen = np.stack([of_seeds * part * random.permutation(drawn) for part in parts / parts.sum()])
        variance = self.rows / times + np.maximum(seen.sum(axis=0), both)
        degrees = np.maximum(variance**2 / (seen**2).sum(axis=0) * (seeds - 1), seeds - 1)
        half = stdtrit(degrees, 1 - alpha / 2) * np.sqrt(variance)
        return np.asarray(ndtr((difference - half) / error))

    def seeds_needed(self, difference: float, times: float = 1, alpha: float = ALPHA) -> int | None:
        """The fewest seeds of each arm that find this difference with a chance of 80 %, three or more; None if no number does."""

        def enough(seeds: float) -> bool:
            return self.power(difference, seeds, times, alpha) >= POWER

        if not enough(_MOST):
            return None
        low, high = MIN_SEEDS - 1, MIN_SEEDS
        while not enough(high):
            low, high = high, min(2 * high, _MOST)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if enough(middle) else (middle, high)
        return high

    def detectable(self, alpha: float = ALPHA) -> tuple[float, float, float]:
        """The true difference that unlimited seeds find with a chance of 80 % on the rows at hand: the estimate, and the ends of
        its 95 % interval.
        """
        from scipy.special import ndtri

        half = float(ndtri((1 + LEVEL) / 2)) * self.rows_error
        low, high = max(0.0, self.rows - half), self.rows + half
        of_one = _errors(alpha)
        return of_one * math.sqrt(self.rows), of_one * math.sqrt(low), of_one * math.sqrt(high)

    def times_needed(self, difference: float, alpha: float = ALPHA) -> float:
        """How many times the rows at hand unlimited seeds need to find this difference with a chance of 80 %."""
        return self.rows * (_errors(alpha) / difference) ** 2


def _errors(alpha: float) -> float:
    """Standard errors of a difference that is found with a chance of 80 %, if they are known: 2.8 with an alpha of 0.05."""
    from scipy.special import ndtri

    return float(ndtri(1 - alpha / 2) + ndtri(POWER))


def components(first: Array, second: Array, influence: tuple[Array, Array]) -> Components:
    """The parts of the variance of first - second.

    first, second: scores (1 + resamples, seeds) of the two arms, as `bitkd.compare.inference.estimate` takes them, of two seeds
    or more.  influence: of the arms' scores, see `bitkd.compare.planning.row_influence`.
    """
    arms = tuple(
        ArmVariance(float(scores[0].var(ddof=1)), both_variance(scores) * scores.shape[1], scores.shape[1])
        for scores in (first, second)
    )
    of_rows = float((first[1:].mean(axis=1) - second[1:].mean(axis=1)).var(ddof=1))
    # The variance of a difference of mean scores without rows × seeds is the mean of these over groups of rows, / groups.
    ours, theirs = influence
    squares = (ours.mean(axis=1) - theirs.mean(axis=1)) ** 2
    squares -= sum(one.var(axis=1, ddof=1) / one.shape[1] for one in influence)
    error = float(squares.std()) / len(squares) ** 1.5
    return Components(max(0.0, of_rows - sum(arm.both / arm.seeds for arm in arms)), error, arms)


def mean_components(found: Sequence[Components]) -> Components:
    """Of the mean over tasks, each with dev rows and training runs of its own."""
    tasks = len(found)
    arms = (
        ArmVariance(arm.between / tasks**2, arm.both / tasks**2, arm.seeds, tasks) for one in found for arm in one.arms
    )
    error = math.sqrt(sum(one.rows_error**2 for one in found))
    return Components(sum(one.rows for one in found) / tasks**2, error / tasks**2, tuple(arms))
