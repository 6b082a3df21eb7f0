"""How many seeds and dev rows a next study needs, from the runs of earlier ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bitkd.compare.arms import Arm, make_arms, runs_by_task
from bitkd.compare.pairing import pairs
from bitkd.compare.power import Components, components, mean_components
from bitkd.compare.question import question_text
from bitkd.compare.resampling import CELLS, resampled_scores
from bitkd.compare.runs import Run
from bitkd.compare.scores import Array, weighted_scores
from bitkd.compare.shared import in_common
from bitkd.compare.study import POINT, named_studies, seeds_join_tasks
from bitkd.config.sections import StudySpec
from bitkd.errors import InputError
from bitkd.names import joined
from bitkd.store.records import StudyRecord

DEFAULT = ("multistage", "singlestage")
GROUPS = 1000
"""Of rows, at most, that scores are computed without."""


@dataclass(frozen=True)
class TaskRuns:
    """What is at hand of one task."""

    task: str
    rows: int
    seeds: tuple[int, int]
    """Of the first arm, and of the second."""


@dataclass(frozen=True)
class Planned:
    """What the runs at hand say of a next study."""

    first: str
    second: str
    reason: str
    """Why this difference was taken."""

    tasks: list[TaskRuns]
    margin: float
    """In points."""

    alpha: float
    components: Components
    notes: list[str]
    """Sentences on what the plan does not hold."""

    @property
    def difference(self) -> float:
        """The margin, as a score."""
        return self.margin * POINT

    def power(self, seeds: float, times: float = 1) -> float:
        return self.components.power(self.difference, seeds, times, self.alpha)

    def equality(self, seeds: float) -> float:
        return self.components.equality(self.difference, seeds, alpha=self.alpha)

    def seeds_needed(self, times: float = 1) -> int | None:
        return self.components.seeds_needed(self.difference, times, self.alpha)

    @property
    def times_needed(self) -> float:
        return self.components.times_needed(self.difference, self.alpha)

    @property
    def detectable(self) -> tuple[float, float, float]:
        return self.components.detectable(self.alpha)


def planned(runs: Sequence[Run], primary: Sequence[str] = (), margin: float | None = None) -> Planned:
    """A next study on the tasks of these runs.

    primary: two pipelines; else those of the study that the runs name, else multistage and singlestage, else the arms of the
    first difference of `bitkd compare`.  margin: in points; else that of the study, else 1.

    Raises InputError if the runs of a task cannot be compared (see `make_arms`), a task lacks one of the two arms or has
    several of it, an arm has one seed, or the runs name several studies and `primary` is not given.
    """
    studies = named_studies(runs)
    if len(studies) > 1 and not primary:
        texts = "; ".join(map(question_text, studies))
        raise InputError(
            f"the runs name {len(studies)} studies ({texts}); give the runs of one, or --primary FIRST,SECOND and --margin"
        )
    record = studies[0] if len(studies) == 1 else None
    by_task = {task: make_arms(group) for task, group in runs_by_task(runs).items()}
    for task, arms in by_task.items():
        if len(arms) < 2:
            raise InputError(
                f"on {task} there is one arm alone, {arms[0].label}; power is that of a difference: add runs of another pipeline"
            )
    first, second, reason = _named(by_task, primary, record)
    chosen = {task: (_arm(arms, first, task), _arm(arms, second, task)) for task, arms in by_task.items()}
    for task, pair in chosen.items():
        for arm in pair:
            if len(arm.runs) < 2:
                raise InputError(
                    f"{arm.label} has one seed on {task} ({arm.seeds[0]}), which does not say how much seeds differ; add runs "
                    "of it with other seeds (seed=N run.name=NAME), two in all or more"
                )
    ours, theirs = next(iter(chosen.values()))
    of_study = record or StudySpec()
    return Planned(
        ours.label,
        theirs.label,
        reason,
        [
            TaskRuns(task, len(pair[0].first.final_predictions.labels), (len(pair[0].runs), len(pair[1].runs)))
            for task, pair in chosen.items()
        ],
        of_study.margin if margin is None else margin,
        of_study.alpha,
        mean_components([_of_pair(*pair) for pair in chosen.values()]),
        _notes(list(chosen.values()), record),
    )


def _notes(pairs: list[tuple[Arm, Arm]], record: StudyRecord | None) -> list[str]:
    found = []
    if shared := in_common([arm for pair in pairs for arm in pair]):
        found.append(
            f"The seeds at hand have {joined(shared)}: how that varies is in no number here. share_across_seeds=false gives each "
            "seed its own."
        )
    if len(pairs) > 1 and record is None:
        found.append("No study names these tasks together; what is planned is the mean of their differences.")
    if seeds_join_tasks([run for pair in pairs for arm in pair for run in arm.runs]):
        found.append(
            "Stages of one seed serve several tasks, so that what a seed adds is alike on them. The plan takes the tasks as "
            "independent: the study may need more seeds."
        )
    return found


def _of_pair(first: Arm, second: Arm) -> Components:
    ours, theirs = resampled_scores([first, second]).students
    return components(ours, theirs, (row_influence(first), row_influence(second)))


def row_influence(arm: Arm) -> Array:
    """How far rows move each seed's score, by the jackknife: (groups of rows, seeds), with mean 0. A group is one row, or more
    if there are more than GROUPS rows.

    The values are the mean score without one group minus the score without this one, times the other groups' number.
    """
    labels = np.asarray(arm.first.final_predictions.labels, dtype=np.float64)
    predicted = np.stack([run.final_predictions.scored for run in arm.runs])
    groups, size = min(len(labels), GROUPS), max(1, CELLS // len(labels))
    parts = []
    for start in range(0, groups, size):
        left_out = np.arange(start, min(start + size, groups))
        kept = (left_out[:, None] != np.arange(len(labels)) % groups).astype(np.float64)
        parts.append(weighted_scores(arm.first.metric, arm.first.num_labels, labels, predicted, kept))
    scores = np.concatenate(parts, axis=1).T
    return (groups - 1) * (scores.mean(axis=0) - scores)


def _named(by_task: dict[str, list[Arm]], primary: Sequence[str], record: StudyRecord | None) -> tuple[str, str, str]:
    """The names of two arms or their pipelines, and why these."""
    if primary:
        first, second = primary
        return first, second, "named by --primary"
    if record:
        first, second = record.primary
        return first, second, "the primary difference of the runs' study"
    first, second = DEFAULT
    if all(sum(arm.pipeline == name for arm in arms) == 1 for arms in by_task.values() for name in DEFAULT):
        return first, second, "the runs name no study, and --primary is not given"
    ours, theirs = pairs(next(iter(by_task.values())))[0]
    return ours.label, theirs.label, "the first difference of the runs, which name no study; --primary is not given"


def _arm(arms: list[Arm], name: str, task: str) -> Arm:
    """The arm of this label or pipeline."""
    if same := next((arm for arm in arms if arm.label == name), None):
        return same
    found = [arm for arm in arms if arm.pipeline == name]
    if len(found) > 1:
        labels = ", ".join(arm.label for arm in found)
        raise InputError(f"{name} has {len(found)} arms on {task} ({labels}); give the runs of one of them alone")
    if not found:
        there = ", ".join(dict.fromkeys(arm.pipeline for arm in arms))
        raise InputError(
            f"there are no runs of {name} on {task}, but of {there}; add some, or name two of these with --primary FIRST,SECOND"
        )
    return found[0]
