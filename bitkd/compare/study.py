"""The verdict of a study: on the difference that was named before the runs, and on nothing else."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from bitkd.compare.arms import Arm
from bitkd.compare.caveats import caveats
from bitkd.compare.inference import Estimate, estimate, holm, mean_of, with_joint_seeds
from bitkd.compare.question import identity, question_text
from bitkd.compare.resampling import ScoredArms
from bitkd.compare.runs import Run
from bitkd.compare.scores import Array
from bitkd.compare.shared import in_common
from bitkd.names import joined, numbered
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

    last_named: str = ""
    """When the last of its runs named the question; `record.named` is when the first did. Empty with a problem."""

    in_common: tuple[str, ...] = ()
    """What all seeds of an arm share, such as “one teacher”, so that the interval does not hold how it varies."""

    caveats: tuple[str, ...] = ()
    """Sentences to be read with the verdict."""

    def estimate_on(self, task: str) -> Estimate | None:
        """The primary difference on one task, of the study's seeds; None without a verdict, or on another task."""
        return next((found.estimate for found in self.by_task if found.tasks == [task]), None)


@dataclass(frozen=True)
class _Pair:
    """The two arms of the question on one task, of the study's seeds alone."""

    arms: tuple[Arm, Arm]
    scores: tuple[Array, Array]
    """(1 + resamples, seeds) of both, the seeds in the study's order."""


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


def named_studies(runs: Sequence[Run]) -> list[StudyRecord]:
    """The questions that runs of both of their pipelines name, each once; if there are none, all that runs name."""
    records: dict[Hashable, StudyRecord] = {}
    pipelines: dict[Hashable, set[str]] = {}
    for run in runs:
        if run.study:
            records.setdefault(identity(run.study), run.study)
            pipelines.setdefault(identity(run.study), set()).add(run.pipeline)
    both = [record for question, record in records.items() if pipelines[question] >= set(record.primary)]
    return both or list(records.values())


def study_of(tasks: Sequence[ScoredArms]) -> Study | None:
    """The verdict of the study that the runs name; None if no run names one.

    Per task, the words better and worse follow from the p values after Holm, the others from intervals of the level
    1 - alpha / tasks. Each of the two by itself has a chance of at most alpha of a false word among all tasks.
    """
    runs = [run for one in tasks for arm in one.arms for run in arm.runs]
    studies = named_studies(runs)
    if not studies:
        return None
    record = studies[0]
    by_task = {one.arms[0].first.task: one for one in tasks}
    own = [run for run in runs if _is_part(run, record)]
    if problem := _problem(studies, own, {task: one.arms for task, one in by_task.items()}):
        return Study(record, problem)
    pairs = [_pair(record, by_task[task]) for task in record.tasks]
    found = [estimate(*pair.scores) for pair in pairs]
    level, margin = 1 - record.alpha / len(found), record.margin * POINT
    whole = mean_of(found)
    if seeds_join_tasks(own):
        whole = with_joint_seeds(whole, [[scores[0] for scores in arm] for arm in zip(*(one.scores for one in pairs))])
    mean = _finding(record.tasks, whole, 1 - record.alpha, margin)
    each = [_finding([task], one, level, margin) for task, one in zip(record.tasks, found)]
    corrected = zip(each, holm([one.p for one in each]))
    named = sorted((run.study.named for run in own if run.study), key=datetime.fromisoformat)
    arms = [pair.arms for pair in pairs]
    return Study(
        replace(record, named=named[0]),
        mean=mean,
        by_task=tuple(_corrected(one, p, record.alpha) for one, p in corrected),
        last_named=named[-1],
        in_common=tuple(in_common([arm for pair in arms for arm in pair])),
        caveats=tuple(caveats(arms)),
    )


def _is_part(run: Run, record: StudyRecord) -> bool:
    return run.pipeline in record.primary and run.task in record.tasks and run.seed in record.seeds


def _pair(record: StudyRecord, task: ScoredArms) -> _Pair:
    arms, scores = [], []
    for pipeline in record.primary:
        arm, values = next(pair for pair in zip(task.arms, task.scores.students) if pair[0].pipeline == pipeline)
        places = [arm.seeds.index(seed) for seed in record.seeds]
        arms.append(Arm(arm.label, [arm.runs[place] for place in places]))
        scores.append(values[:, places])
    return _Pair((arms[0], arms[1]), (scores[0], scores[1]))


def seeds_join_tasks(runs: list[Run]) -> bool:
    """Whether a trained stage serves one seed on several tasks, and other seeds have others, as General KD may."""
    places: dict[str, set[tuple[str, int]]] = {}
    for run in runs:
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


def _corrected(found: Finding, p: float, alpha: float) -> Finding:
    """With the p value after Holm. If it is alpha or more, the interval of the level 1 - alpha / tasks holds 0."""
    if p < alpha:
        return replace(found, word="better" if found.estimate.value > 0 else "worse", p=p)
    return replace(found, p=p)


def _problem(studies: list[StudyRecord], own: list[Run], by_task: dict[str, list[Arm]]) -> str:
    """Why these runs do not decide the question; empty if they do.  own: the runs that are part of the first study."""
    record = studies[0]
    if len(studies) > 1:
        return f"the runs name {len(studies)} studies ({'; '.join(map(question_text, studies))}); compare those of one at a time"
    if other := next((run for run in own if run.study is None or identity(run.study) != identity(record)), None):
        what = "names no study" if other.study is None else "names another study"
        return f"{other.name} {what}; compare runs that were all started with the same settings under study"
    places = [(task, pipeline) for task in record.tasks for pipeline in record.primary]
    seeds = {place: {run.seed for run in own if (run.task, run.pipeline) == place} for place in places}
    if absent := {
        place: sorted(set(record.seeds) - there) for place, there in seeds.items() if set(record.seeds) - there
    }:
        (task, pipeline), (seed, *_) = next(iter(absent.items()))
        texts = [
            f"{pipeline} on {task} with {numbered('seed', missing)}" for (task, pipeline), missing in absent.items()
        ]
        return (
            f"of the study's runs there is no {'; no '.join(texts)}. Name their folders too, or run what is missing with the "
            f"study's settings: bitkd run pipeline={pipeline} task={task} seed={seed}, and so on"
        )
    for task, pipeline in places:
        arms = [arm.label for arm in by_task[task] if arm.pipeline == pipeline]
        if len(arms) > 1:
            return (
                f"there are {len(arms)} arms of {pipeline} on {task}: {joined(arms)}. Compare each apart, with its own arm of "
                f"{next(name for name in record.primary if name != pipeline)}; several tries at one question are exploratory"
            )
    late = [run for run in own if not _named_before(run)]
    if late:
        return (
            f"the question was named after {len(late)} of {len(own)} runs were finished ({late[0].name}): what is chosen after "
            "the results are known is exploratory"
        )
    return ""


def _named_before(run: Run) -> bool:
    if run.study is None or run.finished is None:
        return False
    return datetime.fromisoformat(run.study.named) <= datetime.fromisoformat(run.finished)
