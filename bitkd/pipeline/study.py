"""The study that a run belongs to: its checks, and its record."""

import datetime
from dataclasses import asdict

from bitkd.compare.question import identity, question_problem, question_text
from bitkd.config.load import choices
from bitkd.config.schema import Config
from bitkd.config.sections import StudySpec
from bitkd.errors import InputError, nearest
from bitkd.store.artifacts import Store
from bitkd.store.records import RunManifest, StudyRecord


def check_study(config: Config) -> None:
    """Raise InputError if the settings under `study` name no question, or one that this run is not a part of."""
    study = config.study
    if not study.primary:
        if study != StudySpec():
            raise InputError(
                "study.* is given without study.primary; name the two pipelines that the study compares, "
                "such as study.primary=[multistage,singlestage]"
            )
        return
    if problem := question_problem(study):
        raise InputError(problem)
    if config.task.name not in study.tasks:
        raise InputError(
            f"study.tasks=[{','.join(study.tasks)}] does not name this run's task {config.task.name}; name all tasks of the study"
        )
    if config.pipeline.name in study.primary and config.seed not in study.seeds:
        seeds = ",".join(map(str, study.seeds))
        raise InputError(f"seed={config.seed} is none of study.seeds=[{seeds}]; name all seeds of the study")


def study_notes(config: Config) -> list[str]:
    """What is odd in a study, but may be meant."""
    study, notes = config.study, []
    if not study.primary:
        return []
    if config.pipeline.name not in study.primary:
        notes.append(
            f"the study is on {' and '.join(study.primary)}: this run of {config.pipeline.name} is exploratory"
        )
    for setting, names, own, group in (
        ("primary", study.primary, config.pipeline.name, "pipeline"),
        ("tasks", study.tasks, config.task.name, "task"),
    ):
        known = choices(group) + (choices("recipe") if group == "pipeline" else [])
        for name in names:
            if name != own and name not in known:
                hint = nearest(name, known)
                notes.append(
                    f"study.{setting} names {name}, which is no {group} of conf/; right if it is your own, else {hint}"
                )
    return notes


def study_record(
    config: Config, manifest: RunManifest | None, final: tuple[str, str], store: Store
) -> StudyRecord | None:
    """The record of the run's study; None if it belongs to none.

    A question that the run has named stays, with its time, also where a later start names none.
    manifest: of the run's earlier start.  final: name and key of the last stage.  Raises InputError for a question that comes
    after the last stage began, or in place of another one.
    """
    name, key = final
    before = manifest.study if manifest is not None and manifest.planned.get(name) == key else None
    if not config.study.primary:
        return before
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    record = StudyRecord(**asdict(config.study), named=now)
    if before is not None:
        if identity(before) != identity(record):
            raise InputError(
                f"this run has named another question at {before.named}: {question_text(before)}. Found now: "
                f"{question_text(record)}. Leave study.* out, or repeat the first one; another question takes runs that have "
                "not begun"
            )
        return before
    if config.pipeline.name in record.primary and (store.finished(key) or store.has_checkpoint(key)):
        raise InputError(
            f"the last stage of this run ({name}) has begun, and the run's record holds no question from before; a question that "
            "is named now decides nothing. Leave study.* out; `bitkd compare` shows the differences as exploratory"
        )
    return record


def study_text(study: StudyRecord, began: bool) -> str:
    """The study for people.  began: whether the run's record holds it already."""
    moment = f"named {study.named}" if began else "to be named when the run starts"
    return f"study: {question_text(study)}; {moment}"
