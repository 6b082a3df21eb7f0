"""Which arms a comparison sets against each other, and what a difference between two arms shows."""

from collections.abc import Sequence

from bitkd.compare.arms import MAX_SETTINGS_IN_LABEL, Arm
from bitkd.compare.aspects import WIDTH, Aspect, aspects, differing_settings
from bitkd.compare.runs import Run

REFERENCE = "singlestage"
"""The pipeline that every arm is compared with."""

DIFFERS = "differs from"
"""Begins what is said of two arms that differ in several things; the first of them is its subject."""

CONTRASTS = (("multistage", "halfternary"), ("multistage", "splitdirect"), ("progressive", "singlestage"))
"""Further pairs of pipelines whose arms are compared, if both arms have the same budget."""


def pairs(arms: list[Arm], primary: Sequence[str] = ()) -> list[tuple[Arm, Arm]]:
    """Which arms are compared, each pair once.  primary: two pipelines whose arms come first, if each has one arm alone.

    Each arm is compared with the arm of the reference pipeline that has the same budget. If there are several: the one with
    the fewest different settings, or the first of these. If there is none: the first arm of the reference pipeline, or else
    the first arm. An arm is also compared with the arm of the same budget that CONTRASTS pairs it with.
    """
    found: list[tuple[int, int]] = []

    def nearest(position: int, candidates: list[int]) -> int | None:
        return min(candidates, key=lambda at: _distance(arms[position].first, arms[at].first), default=None)

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
    named = [[at for at, arm in enumerate(arms) if arm.pipeline == pipeline] for pipeline in primary]
    if len(named) == 2 and all(len(places) == 1 for places in named):
        (ours,), (theirs,) = named
        found = [(ours, theirs), *(pair for pair in found if set(pair) != {ours, theirs})]
    return [(arms[first], arms[second]) for first, second in found]


def _distance(one: Run, other: Run) -> int:
    """In how many settings two runs differ. Between pipelines that CONTRASTS does not pair, the width belongs to what they
    are."""
    pipelines = (one.pipeline, other.pipeline)
    same_width = one.pipeline == other.pipeline or pipelines in CONTRASTS or pipelines[::-1] in CONTRASTS
    return sum(same_width or name != WIDTH for name in differing_settings(one, other))


def question(first: Arm, second: Arm) -> str:
    """What first - second shows, such as "what splitting gives", if the arms differ in one thing alone; else in what they
    differ; empty if their records show no difference.
    """
    found = _of_teachers(first, second) + aspects(first.first, second.first)
    if len(found) == 1 and found[0].alone:
        return found[0].alone
    settings = [aspect.text for aspect in found if aspect.is_setting]
    texts = [aspect.text for aspect in found if not aspect.is_setting] + settings[:MAX_SETTINGS_IN_LABEL]
    texts += ["…"] if len(settings) > MAX_SETTINGS_IN_LABEL else []
    return f"{DIFFERS} {second.label} in: {', '.join(texts)}" if texts else ""


def _of_teachers(first: Arm, second: Arm) -> list[Aspect]:
    """The teachers, if the arms have different ones at a seed of both."""
    ours = {run.seed: run.teacher.key for run in first.runs if run.teacher}
    theirs = {run.seed: run.teacher.key for run in second.runs if run.teacher}
    return [Aspect("teachers")] if any(ours[seed] != theirs[seed] for seed in ours.keys() & theirs.keys()) else []
