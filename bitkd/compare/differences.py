"""Differences between arms, each with its intervals and p values."""

from dataclasses import dataclass, replace

from bitkd.compare.arms import Arm
from bitkd.compare.inference import Estimate, estimate, holm
from bitkd.compare.pairing import pairs, question
from bitkd.compare.resampling import ResampledScores
from bitkd.compare.study import Study


@dataclass(frozen=True)
class Difference:
    """first - second in the primary metric of the final students."""

    first: str
    """An arm's label."""

    second: str
    """The other arm's label."""

    question: str
    """What the difference shows if the arms differ in one thing alone; else in what they differ."""

    estimate: Estimate

    p_holm: float | None = None
    """The p value corrected for all exploratory differences of the comparison; None if it has none, or is the primary one."""

    primary: bool = False
    """Whether it was named before the runs; then the estimate is of the study's seeds alone. All others are exploratory."""


def differences(arms: list[Arm], scores: ResampledScores, study: Study | None = None) -> list[Difference]:
    """Compare every arm with singlestage (or the first arm), and the pairs of CONTRASTS.

    scores: of these arms.  study: of these runs; if it has a verdict, its difference comes first.
    """
    by_label = {arm.label: values for arm, values in zip(arms, scores.students, strict=True)}
    named = study.estimate_on(arms[0].first.task) if study else None
    primary = study.record.primary if study and named else []
    found = []
    for first, second in pairs(arms, primary):
        is_primary = [first.pipeline, second.pipeline] == primary
        of_all_seeds = estimate(by_label[first.label], by_label[second.label])
        found.append(
            Difference(
                first=first.label,
                second=second.label,
                question=question(first, second),
                estimate=named if named and is_primary else of_all_seeds,
                primary=is_primary,
            )
        )
    p_values = [None if one.primary else one.estimate.p for one in found]
    corrected = iter(holm([p for p in p_values if p is not None]))
    return [one if p is None else replace(one, p_holm=next(corrected)) for one, p in zip(found, p_values)]
