"""Differences between arms, each with an interval by the bootstrap over dev rows and seeds."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator, default_rng

from bitkd.compare.arms import Arm
from bitkd.compare.pairing import pairs, question
from bitkd.compare.resampling import SEED, resampled_scores
from bitkd.compare.scores import Array

RESAMPLES = 5000
LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """first - second in the primary metric of the final students."""

    first: str
    """An arm's label."""

    second: str
    """The other arm's label."""

    question: str
    """What the difference shows. If the arms also differ in settings, it names these instead."""

    difference: float
    low: float
    """Lower end of the 95 % percentile interval."""

    high: float
    seeds: list[int]
    """Seeds that both arms have, resampled as pairs. If there are none, the seeds of each arm are resampled separately."""

    resampled: str
    """`rows and seeds`; or `rows` if there is only one seed, or one pair of seeds."""


def differences(arms: list[Arm], resamples: int = RESAMPLES) -> list[Difference]:
    """Compare every arm with singlestage (or the first arm), and the pairs of CONTRASTS, on the same resampled dev rows."""
    chosen = pairs(arms)
    if not chosen:
        return []
    scores = resampled_scores([run for arm in arms for run in arm.runs], resamples)
    by_run = {id(run): values for run, values in zip((run for arm in arms for run in arm.runs), scores)}
    return [
        _difference(first, second, [by_run[id(run)] for run in first.runs], [by_run[id(run)] for run in second.runs])
        for first, second in chosen
    ]


def seed_weights(seeds: int, resamples: int, random: Generator) -> Array:
    """Weight of each seed in the mean of each copy, (1 + resamples, seeds); the first copy is the plain mean."""
    counts = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
    return np.concatenate([np.ones((1, seeds)), counts]) / seeds


def interval(values: Array, level: float = LEVEL) -> tuple[float, float]:
    """The percentile interval."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _difference(first: Arm, second: Arm, ours: list[Array], theirs: list[Array]) -> Difference:
    # Seeded anew for each pair, so that the result does not depend on which other arms are compared.
    random = default_rng(SEED)
    resamples = len(ours[0]) - 1
    common = [seed for seed in first.seeds if seed in second.seeds]
    if common:
        paired = _of_seeds(first, ours, common) - _of_seeds(second, theirs, common)
        values = (paired * seed_weights(len(common), resamples, random)).sum(axis=1)
        several = len(common) > 1
    else:
        means = [
            (np.stack(scores, axis=1) * seed_weights(len(scores), resamples, random)).sum(axis=1)
            for scores in (ours, theirs)
        ]
        values = means[0] - means[1]
        several = len(ours) > 1 or len(theirs) > 1
    low, high = interval(values[1:])
    return Difference(
        first=first.label,
        second=second.label,
        question=question(first, second),
        difference=float(values[0]),
        low=low,
        high=high,
        seeds=common,
        resampled="rows and seeds" if several else "rows",
    )


def _of_seeds(arm: Arm, scores: list[Array], seeds: list[int]) -> Array:
    return np.stack([scores[arm.seeds.index(seed)] for seed in seeds], axis=1)
