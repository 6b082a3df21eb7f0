"""The verdict of a study: on the difference that was named before the runs, and on nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from bitkd.compare.arms import Arm
from bitkd.compare.inference import Estimate, estimate, holm, mean_of, with_joint_seeds
from bitkd.compare.resampling import ResampledScores
from bitkd.compare.runs import Run
from bitkd.compare.scores import Array
from bitkd.store.records import StudyRecord

Word = Literal["better", "worse", "equal", "not worse", "undecided"]

POINT = 0.01
"""A point is a hundredth of a metric."""


@dataclass(frozen=True)
class Finding:
    """The primary difference on one task, or the mean of the differences of all tasks."""

    tasks: list[str]
    estimate: Estimate
    low: float
    high: float
    """Ends of the interval that the word follows from."""

    word: Word
    p: float
    """Of no difference; on one of several tasks it is corrected for their number, after Holm."""


@dataclass(frozen=True)
class Study:
    """What runs say of the question that they name."""

    record: StudyRecord
    problem: str = ""
    """Why there is no verdict; empty if there is one."""

    mean: Finding | None = None
    """The verdict: on the mean over the tasks; None with a problem."""

    by_task: tuple[Finding, ...] = ()
    """One for each task, in the study's order; empty with a problem."""


def word_of(low: float, high: float, margin: float) -> Word:
    """The rule's word for a difference with this interval.

    better: all of it is above 0.  worse: all of it is below 0.  equal: all of it is within the margin.  not worse: all of it is
    above -margin.  undecided: anything else. An end that lies exactly on a bound is not beyond it. Better and not worse are
    tested in a fixed order on one interval, so that the second costs no further chance of error.
    """
    if low > 0:
        return "better"
    if high < 0:
        return "worse"
    if low > -margin:
        return "equal" if high < margin else "not worse"
    return "undecided"


def study_of(tasks: Sequence[tuple[list[Arm], ResampledScores]]) -> Study | None:
    """The verdict of the study that the runs name; None if no run names one.

    tasks: the arms of each task, and their scores.

    Per task, the words better and worse follow from the p values after Holm, the others from intervals of the level
    1 - alpha / tasks: the chance of any false one among all tasks is alpha.
    """
    runs = [run for arms, _ in tasks for arm in arms for run in arm.runs]
    record = next((run.study for run in runs if run.study), None)
    if record is None:
        return None
    if problem := _problem(record, runs, {arms[0].first.task: arms for arms, _ in tasks}):
        return Study(record, problem)
    by_task = {arms[0].first.task: _primary_scores(record, arms, scores) for arms, scores in tasks}
    both = [by_task[task] for task in record.tasks]
    found = [estimate(*pair) for pair in both]
    level, margin = 1 - record.alpha / len(found), record.margin * POINT
    whole = mean_of(found)
    if _seeds_join_tasks(runs, record):
        whole = with_joint_seeds(whole, [[scores[0] for scores in arm] for arm in zip(*both)])
    mean = _finding(record.tasks, whole, 1 - record.alpha, margin)
    each = [_finding([task], one, level, margin) for task, one in zip(record.tasks, found)]
    corrected = zip(each, holm([one.p for one in each]))
    return Study(record, "", mean, tuple(_corrected(one, p, record.alpha, margin) for one, p in corrected))


def _primary_scores(record: StudyRecord, arms: list[Arm], scores: ResampledScores) -> tuple[Array, Array]:
    """Of both arms: (1 + resamples, seeds), the study's seeds in their order."""
    found = []
    for pipeline in record.primary:
        arm, values = next(pair for pair in zip(arms, scores.students, strict=True) if pair[0].pipeline == pipeline)
        found.append(values[:, [arm.seeds.index(seed) for seed in record.seeds]])
    return found[0], found[1]


def _seeds_join_tasks(runs: list[Run], record: StudyRecord) -> bool:
    """Whether a trained stage serves one seed on several tasks, and other seeds have others, as General KD may."""
    places: dict[str, set[tuple[str, int]]] = {}
    for run in runs:
        if run.pipeline in record.primary:
            for stage in run.stages:
                if stage.steps and stage.in_chain:
                    places.setdefault(stage.key, set()).add((run.task, run.seed))
    found = [{task for task, _ in where} for where in places.values() if len({seed for _, seed in where}) == 1]
    return any(len(tasks) > 1 for tasks in found)


def _finding(tasks: list[str], found: Estimate, level: float, margin: float) -> Finding:
    interval, p = found.interval(level), found.p
    # A study has three seeds or more.
    assert interval is not None
    assert p is not None
    return Finding(tasks, found, *interval, word_of(*interval, margin), p)


def _corrected(found: Finding, p: float, alpha: float, margin: float) -> Finding:
    if p < alpha:
        word: Word = "better" if found.estimate.value > 0 else "worse"
    else:  # without better and worse, for which the corrected p is too large
        word = word_of(min(found.low, 0.0), max(found.high, 0.0), margin)
    return replace(found, word=word, p=p)


def _problem(record: StudyRecord, runs: list[Run], by_task: dict[str, list[Arm]]) -> str:
    """Why these runs do not decide the question; empty if they do."""
    own = [run for run in runs if run.pipeline in record.primary]
    if other := next((run for run in own if not _same(run.study, record)), None):
        what = "names no study" if other.study is None else "names another study"
        return f"{other.name} {what}; compare runs that were all started with the same settings under study"
    if missing := [task for task in record.tasks if task not in by_task]:
        return f"the study is over {', '.join(record.tasks)}, and runs of {', '.join(missing)} are not among these"
    for task in record.tasks:
        for pipeline in record.primary:
            arms = [arm for arm in by_task[task] if arm.pipeline == pipeline]
            if len(arms) != 1:
                labels = ", ".join(arm.label for arm in arms) or "none"
                return f"the study needs one arm of {pipeline} on {task}, and there are these: {labels}"
            if absent := sorted(set(record.seeds) - set(arms[0].seeds)):
                return f"{arms[0].label} on {task} lacks seeds {', '.join(map(str, absent))} of the study"
    late = [run for run in own if not _named_before(run)]
    if late:
        return (
            f"the question was named after {len(late)} of {len(own)} runs were finished ({late[0].name}): what is chosen after "
            "the results are known is exploratory"
        )
    return ""


def _same(study: StudyRecord | None, record: StudyRecord) -> bool:
    return study is not None and replace(study, named=record.named) == record


def _named_before(run: Run) -> bool:
    if run.study is None or run.finished is None:
        return False
    return datetime.fromisoformat(run.study.named) <= datetime.fromisoformat(run.finished)
