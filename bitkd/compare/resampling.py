"""Scores of students, teachers and the majority on resampled dev rows, the same rows for all of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.random import default_rng

from bitkd.compare.arms import Arm
from bitkd.compare.scores import Array, majority_prediction, weighted_scores

RESAMPLES = 5000
SEED = 0
CELLS = 2_000_000
"""Weights held in memory at once."""


@dataclass(frozen=True)
class ResampledScores:
    """Scores on the dev set itself, then on its resamples."""

    students: list[Array]
    """Of each arm: (1 + resamples, seeds)."""

    teachers: list[Array | None]
    """Of each arm: (1 + resamples, seeds), a teacher that seeds share as often as they do; None if a teacher's predictions
    are not known.
    """

    majority: Array
    """(1 + resamples,), of always predicting the label that is the most frequent in the dev set itself, or of what else
    `majority_prediction` gives.
    """


@dataclass(frozen=True)
class ScoredArms:
    """The arms of one task, and their scores once something needs them."""

    arms: list[Arm]

    @cached_property
    def scores(self) -> ResampledScores:
        return resampled_scores(self.arms)


def resampled_scores(arms: list[Arm], resamples: int = RESAMPLES) -> ResampledScores:
    """Score all runs of a comparison, on its first dev set."""
    first = arms[0].first
    labels = np.asarray(first.final_predictions.labels, dtype=np.float64)
    predicted: dict[tuple[str, ...], Array] = {(): majority_prediction(first.metric, first.num_labels, labels)}
    for arm in arms:
        for run in arm.runs:
            predicted[arm.label, str(run.seed)] = run.final_predictions.scored
            if run.teacher and (found := (run.teacher.predictions or {}).get(run.dev_set)):
                predicted[(run.teacher.key,)] = found.scored  # once if runs share it
    stack = np.stack(list(predicted.values()))
    parts = [
        weighted_scores(first.metric, first.num_labels, labels, stack, weights)
        for weights in row_weights(len(labels), resamples)
    ]
    scores = dict(zip(predicted, np.concatenate(parts, axis=1)))

    def teachers(arm: Arm) -> Array | None:
        known = [scores[(run.teacher.key,)] for run in arm.runs if run.teacher and (run.teacher.key,) in scores]
        return np.stack(known, axis=1) if len(known) == len(arm.runs) else None

    students = [np.stack([scores[arm.label, str(seed)] for seed in arm.seeds], axis=1) for arm in arms]
    return ResampledScores(students, [teachers(arm) for arm in arms], scores[()])


def row_weights(rows: int, resamples: int) -> Iterator[Array]:
    """How often each row occurs in each copy of the dev set, (copies, rows), in parts; the first copy is the dev set itself."""
    random = default_rng(SEED)
    yield np.ones((1, rows))
    size = max(1, CELLS // rows)
    for start in range(0, resamples, size):
        copies = min(size, resamples - start)
        chosen = random.integers(rows, size=(copies, rows)) + np.arange(copies)[:, None] * rows
        yield np.bincount(chosen.ravel(), minlength=copies * rows).reshape(copies, rows).astype(np.float64)
