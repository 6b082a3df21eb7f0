"""How many seeds and dev rows a next study needs, from the runs of an earlier one.

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

from bitkd.compare.arms import Arm, make_arms
from bitkd.compare.inference import LEVEL, MIN_SEEDS, POWER, Shares, both_variance
from bitkd.compare.pairing import pairs
from bitkd.compare.resampling import CELLS, resampled_scores
from bitkd.compare.runs import Run
from bitkd.compare.scores import Array, weighted_scores
from bitkd.compare.study import POINT
from bitkd.errors import InputError
from bitkd.store.records import StudyRecord

ALPHA = 1 - LEVEL
MARGIN = 1.0
DEFAULT = ("multistage", "singlestage")
SEEDS = (3, 5, 10, 20, 40, math.inf)
TIMES = (1, 2, 4)

DRAWS = 2000
"""Of the variances that a study sees between its seeds."""

GROUPS = 1000
"""Of rows, at most, that scores are computed without."""

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
        from scipy.special import gammaincinv, ndtr, ndtri, stdtrit

        error = math.sqrt(self.variance(seeds, times))
        if error == 0:
            return 1.0
        both, of_seeds = self.both / times / seeds, (self.seeds + self.both / times) / seeds
        if of_seeds == 0:
            return float(ndtr(difference / error - ndtri(1 - alpha / 2)))
        # The study will see other variances between its seeds than there are: each arm's is a chi-square number. What seeds
        # add is divided between the arms as it is now; an arm has its part of rows × seeds at least.
        parts = np.array([max(arm.between, arm.both) for arm in self.arms])
        drawn = 2 * gammaincinv((seeds - 1) / 2, (np.arange(DRAWS) + 0.5) / DRAWS) / (seeds - 1)
        random = default_rng(0)
        seen = np.stack([of_seeds * part * random.permutation(drawn) for part in parts / parts.sum()])
        variance = self.rows / times + np.maximum(seen.sum(axis=0), both)
        degrees = np.maximum(variance**2 / (seen**2).sum(axis=0) * (seeds - 1), seeds - 1)
        half = stdtrit(degrees, 1 - alpha / 2) * np.sqrt(variance)
        return float(ndtr((difference - half) / error).mean())

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
        half = 1.96 * self.rows_error
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
    or more.  influence: of the arms' scores, see `row_influence`.
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


def row_influence(arm: Arm) -> Array:
    """How far rows move each seed's score, by the jackknife: (groups of rows, seeds), with mean 0. A group is one row, or more
    if there are more than GROUPS rows.

    The values are the mean score without one group minus the score without this one, times the other groups' number.
    """
    labels = np.asarray(arm.first.final_predictions.labels, dtype=np.float64)
    predicted = np.stack([np.asarray(run.final_predictions.predicted, dtype=np.float64) for run in arm.runs])
    groups, size = min(len(labels), GROUPS), max(1, CELLS // len(labels))
    parts = []
    for start in range(0, groups, size):
        left_out = np.arange(start, min(start + size, groups))
        kept = (left_out[:, None] != np.arange(len(labels)) % groups).astype(np.float64)
        parts.append(weighted_scores(arm.first.metric, arm.first.num_labels, labels, predicted, kept))
    scores = np.concatenate(parts, axis=1).T
    return (groups - 1) * (scores.mean(axis=0) - scores)


def mean_components(found: Sequence[Components]) -> Components:
    """Of the mean over tasks, each with dev rows and training runs of its own."""
    tasks = len(found)
    arms = (
        ArmVariance(arm.between / tasks**2, arm.both / tasks**2, arm.seeds, tasks) for one in found for arm in one.arms
    )
    error = math.sqrt(sum(one.rows_error**2 for one in found))
    return Components(sum(one.rows for one in found) / tasks**2, error / tasks**2, tuple(arms))


@dataclass(frozen=True)
class TaskRuns:
    """What is at hand of one task."""

    task: str
    rows: int
    seeds: tuple[int, int]
    """Of the first arm, and of the second."""


@dataclass(frozen=True)
class Planned:
    """What the runs at hand say of a next study."""

    first: str
    second: str
    reason: str
    """Why this difference was taken."""

    tasks: list[TaskRuns]
    margin: float
    """In points."""

    alpha: float
    components: Components

    @property
    def difference(self) -> float:
        """The margin, as a score."""
        return self.margin * POINT

    def power(self, seeds: float, times: float = 1) -> float:
        return self.components.power(self.difference, seeds, times, self.alpha)

    def seeds_needed(self, times: float = 1) -> int | None:
        return self.components.seeds_needed(self.difference, times, self.alpha)

    @property
    def times_needed(self) -> float:
        return self.components.times_needed(self.difference, self.alpha)

    @property
    def detectable(self) -> tuple[float, float, float]:
        return self.components.detectable(self.alpha)


def planned(runs: Sequence[Run], primary: Sequence[str] = (), margin: float | None = None) -> Planned:
    """A next study on the tasks of these runs.

    primary: two pipelines; else those of the study that the runs name, else multistage and singlestage, else the arms of the
    first difference of `bitkd compare`.  margin: in points; else that of the study, else 1.

    Raises InputError if the runs of a task cannot be compared (see `make_arms`), a task lacks one of the two arms or has
    several of it, or an arm has one seed.
    """
    record = next((run.study for run in runs if run.study), None)
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        grouped.setdefault(run.task, []).append(run)
    by_task = {task: make_arms(group) for task, group in grouped.items()}
    for task, arms in by_task.items():
        if len(arms) < 2:
            raise InputError(
                f"on {task} there is one arm alone, {arms[0].label}; power is that of a difference: add runs of another pipeline"
            )
    first, second, reason = _named(by_task, primary, record)
    chosen = {task: (_arm(arms, first, task), _arm(arms, second, task)) for task, arms in by_task.items()}
    for task, pair in chosen.items():
        for arm in pair:
            if len(arm.runs) < 2:
                raise InputError(
                    f"{arm.label} has one seed on {task} ({arm.seeds[0]}), which does not say how much seeds differ; add runs "
                    "of it with other seeds (seed=N run.name=NAME), two in all or more"
                )
    ours, theirs = next(iter(chosen.values()))
    if margin is None:
        margin = record.margin if record else MARGIN
    return Planned(
        ours.label,
        theirs.label,
        reason,
        [
            TaskRuns(task, len(pair[0].first.final_predictions.labels), (len(pair[0].runs), len(pair[1].runs)))
            for task, pair in chosen.items()
        ],
        margin,
        record.alpha if record else ALPHA,
        mean_components([_of_pair(*pair) for pair in chosen.values()]),
    )


def _of_pair(first: Arm, second: Arm) -> Components:
    ours, theirs = resampled_scores([first, second]).students
    return components(ours, theirs, (row_influence(first), row_influence(second)))


def _named(by_task: dict[str, list[Arm]], primary: Sequence[str], record: StudyRecord | None) -> tuple[str, str, str]:
    """The names of two arms or their pipelines, and why these."""
    if primary:
        first, second = primary
        return first, second, "named by --primary"
    if record:
        first, second = record.primary
        return first, second, "the primary difference of the runs' study"
    first, second = DEFAULT
    if all(sum(arm.pipeline == name for arm in arms) == 1 for arms in by_task.values() for name in DEFAULT):
        return first, second, "the runs name no study, and --primary is not given"
    ours, theirs = pairs(next(iter(by_task.values())))[0]
    return ours.label, theirs.label, "the first difference of the runs, which name no study; --primary is not given"


def _arm(arms: list[Arm], name: str, task: str) -> Arm:
    """The arm of this label or pipeline."""
    if same := next((arm for arm in arms if arm.label == name), None):
        return same
    found = [arm for arm in arms if arm.pipeline == name]
    if len(found) > 1:
        labels = ", ".join(arm.label for arm in found)
        raise InputError(f"{name} has {len(found)} arms on {task} ({labels}); give the runs of one of them alone")
    if not found:
        there = ", ".join(dict.fromkeys(arm.pipeline for arm in arms))
        raise InputError(
            f"there are no runs of {name} on {task}, but of {there}; add some, or name two of these with --primary FIRST,SECOND"
        )
    return found[0]
