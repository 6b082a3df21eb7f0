"""Scores of runs on resampled dev rows."""

from collections.abc import Iterator

import numpy as np
from numpy.random import Generator, default_rng

from bitkd.compare.runs import Run
from bitkd.compare.scores import Array, weighted_scores

SEED = 0
CELLS = 2_000_000
"""Weights held in memory at once."""


def resampled_scores(runs: list[Run], resamples: int) -> list[Array]:
    """Scores of each run, (1 + resamples,): of the dev set itself, then of its resamples, the same for all runs."""
    labels = np.asarray(runs[0].final_predictions.labels, dtype=np.float64)
    predicted = [np.asarray(run.final_predictions.predicted, dtype=np.float64) for run in runs]
    metric, count = runs[0].metric, runs[0].num_labels
    parts: list[list[Array]] = [[] for _ in runs]
    for weights in _weights(len(labels), resamples, default_rng(SEED)):
        for part, values in zip(parts, predicted):
            part.append(weighted_scores(metric, count, labels, values, weights))
    return [np.concatenate(part) for part in parts]


def _weights(rows: int, resamples: int, random: Generator) -> Iterator[Array]:
    """How often each row occurs in each copy of the dev set, (copies, rows), in parts; the first copy is the dev set itself."""
    yield np.ones((1, rows))
    size = max(1, CELLS // rows)
    for start in range(0, resamples, size):
        copies = min(size, resamples - start)
        chosen = random.integers(rows, size=(copies, rows)) + np.arange(copies)[:, None] * rows
        yield np.bincount(chosen.ravel(), minlength=copies * rows).reshape(copies, rows).astype(np.float64)
