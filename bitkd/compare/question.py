"""Whether a study's question can be decided at all."""

import math
from collections.abc import Hashable, Sequence

from bitkd.config.sections import StudySpec
from bitkd.names import joined, numbered
from bitkd.store.records import StudyRecord

MIN_SEEDS = 3
"""Of each arm. With fewer, the variance between seeds is not known well enough for an interval that is of any use."""

Question = StudySpec | StudyRecord


def question_problem(study: Question) -> str | None:
    """Why the question cannot be decided, with what to do; None if it can."""
    if len(study.primary) != 2 or study.primary[0] == study.primary[1]:
        return f"study.primary={_list(study.primary)} is no difference; name two pipelines, such as [multistage,singlestage]"
    for name, values in (("tasks", study.tasks), ("seeds", study.seeds)):
        if len(set(values)) < len(values):
            return f"study.{name}={_list(values)} has one of them twice; name each once"
    if not study.tasks:
        return "study.tasks=[] names no task; name all tasks of the study"
    if len(study.seeds) < MIN_SEEDS:
        return (
            f"study.seeds={_list(study.seeds)}: fewer than {MIN_SEEDS} seeds say nothing of other seeds; name at least "
            f"{MIN_SEEDS}"
        )
    if not 0 < study.margin < math.inf:
        return f"study.margin={study.margin:g} is no margin; use a number of points above 0"
    if not 0 < study.alpha < 0.5:
        return f"study.alpha={study.alpha:g} is no chance of a false finding; use one above 0 and below 0.5"
    return None


def identity(study: Question) -> Hashable:
    """What two records of one question have in common; tasks and seeds in any order."""
    return tuple(study.primary), frozenset(study.tasks), frozenset(study.seeds), study.margin, study.alpha


def question_text(study: Question) -> str:
    """A question, for people."""
    first, second = study.primary
    return (
        f"{first} − {second} on {joined(study.tasks)}, {numbered('seed', study.seeds)}, a margin of "
        f"{study.margin:g} point{'' if study.margin == 1 else 's'}, alpha {study.alpha:g}"
    )


def _list(values: Sequence[str] | Sequence[int]) -> str:
    return f"[{','.join(map(str, values))}]"
