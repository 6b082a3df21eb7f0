"""What runs must have in common to be compared."""

import math

import numpy as np

from bitkd.compare.forms import ANSWERS, VALUES
from bitkd.compare.runs import Predictions, Run
from bitkd.compare.scores import score
from bitkd.errors import InputError

CONSTANT = 1e-3
"""If predictions vary by less than this (relative to the largest), float32 rounding decides the correlation."""


def check_tasks(runs: list[Run]) -> None:
    """Check that runs are of one task, with the same labels, metric and dev rows. Raises InputError if they are not."""
    tasks = sorted({run.task for run in runs})
    if len(tasks) > 1:
        raise InputError(f"these runs are of different tasks ({', '.join(tasks)}); compare runs of one task at a time")
    first = runs[0]
    for run in runs:
        if (run.metric, run.labels) != (first.metric, first.labels):
            raise InputError(
                f"{first.name} and {run.name} measure task {run.task} by other labels or metrics ({first.metric} of "
                f"{first.labels}, {run.metric} of {run.labels}); compare runs of one task file"
            )
        labels, of_first = run.final_predictions.labels, first.final_predictions.labels
        if run.dev_set != first.dev_set or labels != of_first:
            raise InputError(
                f"{first.name} and {run.name} were measured on different dev rows ({first.dev_set}: {len(of_first)} rows, "
                f"{run.dev_set}: {len(labels)} rows, or other labels); compare runs on the same data"
            )


def check_predictions(run: Run) -> None:
    """Check that the predictions of teacher and final student give the recorded scores. Raises InputError if not."""
    for stage in (run.teacher, run.final):
        if stage is None or stage.predictions is None or stage.score is None:
            continue
        given = stage.predictions.get(run.dev_set)
        labels = run.final_predictions.labels
        if given is None or given.labels != labels or len(given.predicted) != len(labels):
            raise InputError(f"{run.name}: stage {stage.name} was measured on other dev rows than its final student")
        found = score(run.metric, run.num_labels, np.asarray(labels, float), given.scored)
        # torchmetrics sums in float32, and gives 0 for a correlation that it considers to be rounding.
        is_number = run.labels is None and run.form is VALUES
        noise = is_number and (is_constant(given.predicted) or stage.score == 0)
        if not noise and not math.isclose(found, stage.score, rel_tol=1e-3, abs_tol=1e-3):
            raise InputError(
                f"{run.name}: stage {stage.name} is recorded with {run.metric} {stage.score:.4f}, but its predictions give "
                f"{found:.4f}; its records are damaged, run it again"
            )


def check_same_stages(group: list[Run]) -> None:
    """Check that runs of one arm differ only in their seeds, as far as their records show. Raises InputError if not."""
    first = group[0]
    for run in group[1:]:
        ours, theirs = _outlines(first), _outlines(run)
        if ours != theirs:
            one, other = next(
                ((a, b) for a, b in zip(ours, theirs) if a != b), ((f"{len(ours)} stages",), (f"{len(theirs)} stages",))
            )
            raise InputError(
                f"{first.name} and {run.name} are both {described(run)}, but differ in more than their seeds "
                f"({', '.join(map(str, one))} against {', '.join(map(str, other))}); give one of them another "
                "pipeline.name="
            )


def _outlines(run: Run) -> list[tuple[str | int, ...]]:
    """What the runs of one arm must have in common. Shared stages (teachers) may differ in size and steps, but not in
    name or kind: tables match the stages of runs by position."""
    return [
        (s.name, s.kind, *((s.precision, s.parameters, s.steps, s.examples) if s.in_chain else ())) for s in run.stages
    ]


def is_constant(predicted: list[int | float]) -> bool:
    """Whether predictions are the same for all rows, as far as a metric can show."""
    return float(np.ptp(predicted)) <= CONSTANT * float(np.abs(predicted).max())


def learned_nothing(run: Run, found: Predictions) -> bool:
    """Whether predictions are those of a model that looks at no text, as far as the metric shows: they are the same for all
    rows; no answer is better than none; no entity is right. False if the dev set has no answers or entities at all.
    """
    if run.form is VALUES:
        return is_constant(found.predicted)
    if run.form is ANSWERS:
        return any(found.labels) and all(own <= 1 - label for own, label in zip(found.predicted, found.labels))
    return any(found.labels) and not any(found.matched or ())


def described(run: Run) -> str:
    """A run's pipeline and budget, for messages."""
    return f"pipeline {run.pipeline}" + (f" with a budget of {run.budget_text}" if run.budget else "")
