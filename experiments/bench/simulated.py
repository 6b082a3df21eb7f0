"""Simulated studies, of which the true difference is known: students that are right or wrong on random dev rows.

A student is right on a row if a normal number is below the quantile of its accuracy. That number is the sum of a part of the row,
which all students share, a part of row and arm, and a part of row, arm and seed. Accuracies vary normally from seed to seed.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtri, owens_t

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """How right answers go together: variances over dev rows, as the pilot's students have them."""

    variance: float
    """Of being right (1) or wrong (0)."""

    same_arm: float
    """Covariance of two seeds of one arm."""

    other_arm: float
    """Covariance of students of two arms."""

    @property
    def accuracy(self) -> float:
        """With which right answers have this variance."""
        return (1 + np.sqrt(1 - 4 * self.variance)) / 2

    def correlations(self) -> tuple[float, float]:
        """Of the normal numbers of two students, of one arm and of two arms."""
        accuracy = self.accuracy
        quantile = ndtri(accuracy)

        def both_right(correlation: float) -> float:
            return accuracy - 2 * owens_t(quantile, np.sqrt((1 - correlation) / (1 + correlation)))

        same, other = (
            brentq(lambda x, covariance=covariance: both_right(x) - accuracy**2 - covariance, 0, 0.9999)
            for covariance in (self.same_arm, self.other_arm)
        )
        return same, other


SST2 = Rows(0.1474, 0.0998, 0.0888)
MRPC = Rows(0.1829, 0.1328, 0.1208)


@dataclass(frozen=True)
class Population:
    """Arms, of which studies are drawn. Each arm is as good as the first, or better."""

    metric: str
    """accuracy, f1, matthews or pearson_spearman."""

    rows: Rows
    deviations: tuple[float, ...]
    """Of each arm: standard deviation of its quality from seed to seed. Quality is accuracy, or the correlation with labels."""

    better: tuple[float, ...]
    """Of each arm: by how much its quality is above the first arm's."""

    positive: float = 0.5
    """Share of rows with label 1."""

    correlation: float | None = None
    """Of a regression: the first arm's correlation with the labels."""

    @property
    def num_labels(self) -> int | None:
        return 2 if self.correlation is None else None

    @cached_property
    def qualities(self) -> list[float]:
        """Of each arm, the mean over all seeds."""
        first = self.rows.accuracy if self.correlation is None else self.correlation
        return [first + better for better in self.better]

    @cached_property
    def _correlations(self) -> tuple[float, float]:
        return self.rows.correlations()

    def draw(self, random: Generator, rows: int, seeds: tuple[int, ...]) -> tuple[Array, list[Array], list[Array]]:
        """One study: labels (rows,), each arm's predictions (seeds, rows), each arm's qualities (seeds,)."""
        same, other = self._correlations
        common = np.sqrt(other) * random.standard_normal(rows)
        parts = [
            common
            + np.sqrt(same - other) * random.standard_normal(rows)
            + np.sqrt(1 - same) * random.standard_normal((count, rows))
            for count in seeds
        ]
        qualities = [
            random.normal(mean, deviation, count)
            for mean, deviation, count in zip(self.qualities, self.deviations, seeds, strict=True)
        ]
        if self.correlation is not None:
            labels = random.standard_normal(rows)
            predicted = [q[:, None] * labels + np.sqrt(1 - q[:, None] ** 2) * part for q, part in zip(qualities, parts)]
            return labels, predicted, qualities
        labels = (random.random(rows) < self.positive).astype(np.float64)
        right = [part < ndtri(quality)[:, None] for quality, part in zip(qualities, parts)]
        return labels, [np.where(arm, labels, 1 - labels) for arm in right], qualities

    def score(self, quality: Array) -> Array:
        """The metric of students of this quality on infinitely many rows."""
        share = self.positive
        match self.metric:
            case "accuracy":
                return quality
            case "f1":
                return 2 * share * quality / (2 * share * quality + 1 - quality)
            case "matthews":
                said = share * quality + (1 - share) * (1 - quality)
                covariance = share * quality - share * said
                return covariance / np.sqrt(share * (1 - share) * said * (1 - said))
            case _:
                return (quality + 6 / np.pi * np.arcsin(quality / 2)) / 2

    @cached_property
    def scores(self) -> list[float]:
        """The true score of each arm: the mean over all seeds and rows."""
        points, weights = np.polynomial.hermite_e.hermegauss(24)
        weights = weights / weights.sum()
        return [
            float(weights @ self.score(mean + deviation * points))
            for mean, deviation in zip(self.qualities, self.deviations)
        ]
