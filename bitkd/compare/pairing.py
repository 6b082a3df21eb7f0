"""Which arms a comparison sets against each other, and what a difference between two arms shows."""

import re

from bitkd.compare.arms import MAX_SETTINGS_IN_LABEL, Arm
from bitkd.compare.runs import Run

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


def question(first: Arm, second: Arm) -> str:
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
