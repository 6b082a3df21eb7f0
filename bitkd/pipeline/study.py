"""The study that a run belongs to: its checks, and its record."""

import datetime
import math
from dataclasses import asdict, replace

from bitkd.config.schema import Config
from bitkd.errors import InputError
from bitkd.store.records import StudyRecord

MIN_SEEDS = 3


def check_study(config: Config) -> None:
    """Raise InputError if the settings under `study` name no question, or one that this run is not a part of."""
    study = config.study
    if not study.primary:
        if study.tasks or study.seeds:
            raise InputError(
                "study.tasks or study.seeds is given without study.primary; name the two pipelines that the study compares, "
                "such as study.primary=[multistage,singlestage]"
            )
        return
    if len(set(study.primary)) != 2 or len(study.primary) != 2:
        raise InputError(
            f"study.primary={_list(study.primary)} is no difference; name two pipelines, such as [multistage,singlestage]"
        )
    if config.task.name not in study.tasks:
        raise InputError(
            f"study.tasks={_list(study.tasks)} does not name this run's task {config.task.name}; name all tasks of the study"
        )
    if len(set(study.seeds)) < MIN_SEEDS:
        raise InputError(
            f"study.seeds={_list(study.seeds)}: fewer than {MIN_SEEDS} seeds say nothing of other seeds; name at least "
            f"{MIN_SEEDS}"
        )
    if config.pipeline.name in study.primary and config.seed not in study.seeds:
        raise InputError(f"seed={config.seed} is none of study.seeds={_list(study.seeds)}; name all seeds of the study")
    if not 0 < study.margin < math.inf:
        raise InputError(f"study.margin={study.margin:g} is no margin; use a number of points above 0")
    if not 0 < study.alpha < 0.5:
        raise InputError(f"study.alpha={study.alpha:g} is no chance of a false finding; use one above 0 and below 0.5")


def study_record(config: Config, before: StudyRecord | None) -> StudyRecord | None:
    """The record of the run's study; None if it belongs to none.  before: what the run's record has said so far, whose time
    stays if the question is the same.
    """
    if not config.study.primary:
        return None
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    record = StudyRecord(**asdict(config.study), named=now)
    return before if before is not None and replace(before, named=now) == record else record


def _list(values: list[str] | list[int]) -> str:
    return f"[{','.join(map(str, values))}]"
