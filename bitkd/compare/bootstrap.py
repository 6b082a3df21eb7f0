"""Paired differences between arms, with an interval by the bootstrap over dev rows and seeds."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator, default_rng

from bitkd.compare.arms import MAX_SETTINGS_IN_LABEL, Arm
from bitkd.compare.runs import Run
from bitkd.compare.scores import Array, weighted_scores

RESAMPLES = 5000
LEVEL = 0.95
SEED = 0
CELLS = 2_000_000
"""Weights held in memory at once."""

REFERENCE = "singlestage"
"""The pipeline that every arm is compared with."""

CONTRASTS = {
    ("multistage", "halfternary"): "what splitting gives",
    ("multistage", "splitdirect"): "what the ternary stage gives",
    ("progressive", "singlestage"): "what the precision steps give",
}
"""Two pipelines -> what a difference between their arms shows, if both arms have the same budget."""

WIDTH = "student.width"
BY_DEFINITION = re.compile(r"stages\.[^.]+\.student|budget\.shares\..+")
"""Settings that differ by definition between two pipelines and are therefore not reported as differences. Pipelines paired
in CONTRASTS must also have the same student.width."""


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


def pairs(arms: list[Arm]) -> list[tuple[Arm, Arm]]:
    """Which arms are compared, each pair once.

    Each arm is compared with the arm of the reference pipeline that has the same budget. If there are several: the one with
    the fewest different settings, or the first of these. If there is none: the first arm of the reference pipeline, or else
    the first arm. An arm is also compared with the arm of the same budget that CONTRASTS pairs it with.
    """
    found: list[tuple[int, int]] = []

    def nearest(position: int, candidates: list[int]) -> int | None:
        return min(
            candidates, key=lambda at: len(differing_settings(arms[position].first, arms[at].first)), default=None
        )

    def partner(position: int, pipeline: str) -> int | None:
        total = arms[position].first.budget_total
        same = [at for at, arm in enumerate(arms) if arm.pipeline == pipeline and arm.first.budget_total == total]
        if arms[position].pipeline == pipeline:
            same = [at for at in same if at < position]
        return nearest(position, same)

    fallback = next((at for at, arm in enumerate(arms) if arm.pipeline == REFERENCE), 0)
    for at in range(len(arms)):
        reference = partner(at, REFERENCE)
        reference = fallback if reference is None else reference
        if at != reference:
            found.append((at, reference))
    for first, second in CONTRASTS:
        for at in (at for at, arm in enumerate(arms) if arm.pipeline == first):
            other = partner(at, second)
            if other is not None and (other, at) in found:
                found[found.index((other, at))] = (at, other)
            elif other is not None and (at, other) not in found:
                found.append((at, other))
    return [(arms[first], arms[second]) for first, second in found]


def differing_settings(one: Run, other: Run) -> list[str]:
    """Settings that both runs have and that differ, without those that differ by definition."""
    differing = [name for name, value in one.settings.items() if value != other.settings.get(name, value)]
    pipelines = (one.pipeline, other.pipeline)
    same_width = one.pipeline == other.pipeline or pipelines in CONTRASTS or pipelines[::-1] in CONTRASTS
    return [name for name in differing if not BY_DEFINITION.fullmatch(name) and (same_width or name != WIDTH)]


def _question(first: Arm, second: Arm) -> str:
    if first.pipeline == second.pipeline or first.first.budget_total != second.first.budget_total:
        return ""  # the labels and a warning show the difference
    names = differing_settings(first.first, second.first)
    teachers = {run.seed: run.teacher.key for run in first.runs if run.teacher}
    if any(run.teacher and run.teacher.key != teachers.get(run.seed, run.teacher.key) for run in second.runs):
        names = ["their teachers", *names]
    if names:
        shown = ", ".join(names[:MAX_SETTINGS_IN_LABEL]) + (", …" if len(names) > MAX_SETTINGS_IN_LABEL else "")
        return f"not the pipelines alone: they also differ in {shown}"
    bits = [arm.first.final.precision for arm in (first, second)]
    contrast = CONTRASTS.get((first.pipeline, second.pipeline), "")
    return contrast or (" against ".join(bits) if bits[0] != bits[1] else "")


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
        question=_question(first, second),
        difference=float(values[0]),
        low=low,
        high=high,
        seeds=common,
        resampled="rows and seeds" if several else "rows",
    )


def _of_seeds(arm: Arm, scores: list[Array], seeds: list[int]) -> Array:
    return np.stack([scores[arm.seeds.index(seed)] for seed in seeds], axis=1)
