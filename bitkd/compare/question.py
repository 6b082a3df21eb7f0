"""Whether a study's question can be decided at all."""

import math
from collections.abc import Sequence
from typing import Any

from bitkd.compare.inference import MIN_SEEDS
from bitkd.config.sections import StudySpec
from bitkd.store.records import StudyRecord

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


def same_question(first: Question, second: Question) -> bool:
    """Whether two records name one question; tasks and seeds in any order."""
    return _parts(first) == _parts(second)


def _parts(study: Question) -> tuple[Any, ...]:
    return tuple(study.primary), sorted(study.tasks), sorted(study.seeds), study.margin, study.alpha


def question_text(study: Question) -> str:
    """The question in a few words."""
    points = f"{study.margin:g} point{'' if study.margin == 1 else 's'}"
    seeds = ", ".join(map(str, study.seeds))
    return (
        f"{study.primary[0]} − {study.primary[1]} on {', '.join(study.tasks)}; seeds {seeds}; margin {points}; "
        f"alpha {study.alpha:g}"
    )


def _list(values: Sequence[str] | Sequence[int]) -> str:
    return f"[{','.join(map(str, values))}]"
