"""The share of the teacher's score that an arm's students retain."""

from dataclasses import dataclass

from bitkd.compare.inference import percentiles
from bitkd.compare.resampling import ResampledScores
from bitkd.compare.scores import Array

MARGIN_ERRORS = 4
"""A teacher is above the majority if its margin is at least this many of its standard errors over dev rows. With a smaller
margin a ratio to it may be anything.
"""

ROUNDING = 1e-6
"""A margin below this is rounding: recorded predictions are those of float32."""


@dataclass(frozen=True)
class Retained:
    """(mean student - majority) / (mean teacher - majority), means over seeds."""

    mean: float
    low: float
    """Lower end of the 95 % interval of these very models on other dev rows."""

    high: float


def retained(scores: ResampledScores) -> list[Retained | None]:
    """Of each arm; None if its teachers are not clearly above the majority, or their predictions are not known.

    The rows of students, teachers and majority are resampled together, and the share is taken of each resample.
    """
    return [
        None if teachers is None else _retained(students.mean(axis=1), teachers.mean(axis=1), scores.majority)
        for students, teachers in zip(scores.students, scores.teachers, strict=True)
    ]


def _retained(student: Array, teacher: Array, majority: Array) -> Retained | None:
    margin = teacher - majority
    if margin[0] < max(MARGIN_ERRORS * margin[1:].std(ddof=1), ROUNDING):
        return None
    shares = (student - majority) / margin
    low, high = percentiles(shares[1:])
    return Retained(float(shares[0]), low, high)
