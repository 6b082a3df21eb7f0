"""Checks of a task's definition, before any row is read."""

import re
from pathlib import Path

from bitkd.data.tags import TagScheme
from bitkd.data.task_kinds import GLUE_OF_LABELS, GLUE_OF_NUMBERS, OF_LABELS, OF_NUMBERS, KindOfTask
from bitkd.data.tasks import HOLDOUT, SCORE_KEY, TaskSpec
from bitkd.errors import InputError, check_choices
from bitkd.names import check_distinct, check_name, shown

RESERVED_TASKS = ("store", "cache", "sweeps", "reports")
"""Folders of run.dir that are no task's."""


def check_task(task: TaskSpec) -> None:
    """Raises InputError if a task's definition contradicts itself."""
    check_name(task.name, "task.name=")
    if task.name.casefold() in RESERVED_TASKS:
        raise InputError(f"task.name={task.name} is a folder of bitkd's own in run.dir; choose another name")
    where = f"task {task.name}"
    kind = task.of_kind
    if len(task.text) not in kind.texts:
        allowed = " or ".join({1: "one", 2: "two"}[count] for count in kind.texts)
        raise InputError(f"{where}: text={task.text} names {len(task.text)} columns; name {allowed}")
    _check_kind(task, kind, where)
    for place, columns in (("files.text", task.files.text), ("hub.text", task.hub.text)):
        if columns is not None and len(columns) != len(task.text):
            raise InputError(f"{where}: {place}={columns} must name as many columns as text={task.text}")
    if task.files.test_text is not None and len(task.files.test_text) != len(task.text):
        raise InputError(
            f"{where}: files.test_text={task.files.test_text} must name as many columns as text={task.text}"
        )
    for place, sets in (("files", task.files), ("hub", task.hub)):
        names = [*sets.dev, *sets.test]
        for name in names:
            check_name(name, f"{where}: {place}: the set ")
        check_distinct(dict.fromkeys(names), f"{where}: {place}: the set ")
        taken = ("train", HOLDOUT, SCORE_KEY)
        wrong = sorted({name for name in names if names.count(name) > 1 or name.casefold() in taken})
        if wrong:
            raise InputError(
                f"{where}: {place}.dev and {place}.test use the name {wrong[0]}, which is taken; choose another"
            )
    files = [task.files.folder, task.files.train, *task.files.dev.values(), *task.files.test.values()]
    if outside := next((name for name in files if Path(name).is_absolute() or ".." in Path(name).parts), None):
        raise InputError(f"{where}: files: {shown(outside)} leads out of data.dir; name a file or a folder in it")
    check_hub_id(task.hub.path, f"{where}: hub.path=")
    if task.labels is not None and len(set(task.labels)) != len(task.labels):
        raise InputError(f"{where}: labels {task.labels} repeat a name")
    if task.labels is not None and len(task.labels) < 2:
        raise InputError(
            f"{where}: labels {task.labels} leave nothing to decide; name two or more, or null (a regression)"
        )
    if not task.files.dev and not task.hub.dev:
        raise InputError(f"{where} has no dev set; name one, such as files.dev: {{dev: dev.tsv}}")
    check_choices(task.files, f"{where}: files.")
    if kind.labels is False:  # its labels are read by a reader of its own
        return
    if (task.labels is None) != (task.files.labels_as == "number"):
        raise InputError(f"{where}: labels_as={task.files.labels_as} does not fit labels={task.labels}")


def _check_kind(task: TaskSpec, kind: KindOfTask, where: str) -> None:
    """Raise InputError if the settings do not fit the task's kind."""
    if kind.labels is False and task.labels is not None:
        raise InputError(f"{where}: labels={task.labels}, but kind={kind.name} has no classes; leave labels out")
    if kind.labels and task.labels is None:
        raise InputError(f"{where}: kind={kind.name} needs labels, the names of its classes")
    if kind.tags:
        TagScheme(task.labels or [])
    if task.augmentation.enabled and not kind.can_augment:
        raise InputError(
            f"{where}: augmentation.enabled=true, but the labels of kind={kind.name} belong to words of the texts, which "
            "augmentation replaces; use false"
        )
    if task.windows.overlap is not None and task.windows.overlap < 0:
        raise InputError(f"{where}: windows.overlap={task.windows.overlap} is negative; use 0 or more, or null")
    if task.answers.longest < 1:
        raise InputError(f"{where}: answers.longest={task.answers.longest} leaves no answer; use 1 or more")
    if not task.similarity.lowest < task.similarity.highest:
        raise InputError(
            f"{where}: similarity.lowest={task.similarity.lowest} is not below similarity.highest={task.similarity.highest}"
        )


def check_hub_id(path: str, setting: str) -> None:
    """Raise InputError if `path`, unless it is empty, is no id of a dataset on the hub: `datasets` would read a folder.

    setting: put before it in the message.
    """
    if path and not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", path):
        raise InputError(f"{setting}{shown(path)} is no id of a dataset on the hub; write OWNER/NAME")
    if path and Path(path).exists():
        raise InputError(
            f"{setting}{path} is also a folder or file here, which `datasets` would read in place of the hub; start bitkd in "
            "another folder, or rename it"
        )


def check_metrics(task: TaskSpec) -> None:
    """Raises InputError if a task's metrics are unknown or do not fit its labels."""
    where = f"task {task.name}"
    kind, allowed = f"kind={task.kind}", task.of_kind.metrics
    if task.of_kind.labels is None:
        kind = "a regression" if task.labels is None else "labels"
        allowed = (*GLUE_OF_NUMBERS, *OF_NUMBERS) if task.labels is None else (*GLUE_OF_LABELS, *OF_LABELS)
    for metric in dict.fromkeys([task.metric, *task.metrics]):
        if metric not in allowed:
            raise InputError(f"{where}: metric {metric} is unknown or not for {kind}; use one of {', '.join(allowed)}")
    if "pearson_spearman" in task.metrics:
        raise InputError(f"{where}: pearson_spearman is a primary metric; list pearson and spearman under metrics")
    wanted = ("pearson", "spearman") if task.metric == "pearson_spearman" else (task.metric,)
    absent = [metric for metric in wanted if metric not in task.metrics]
    if absent:
        raise InputError(f"{where}: its metric {task.metric} is not among its metrics {task.metrics}; add {absent[0]}")
    if "f1" in task.metrics and len(task.labels or []) != 2:
        raise InputError(f"{where}: f1 is for two labels; it has {task.labels} (F1Score averages over any number)")


def check_test_set(task: TaskSpec, name: str, local: bool) -> None:
    """Raise InputError if the task has no test set of this name.  local: whether its rows are files, or on the hub."""
    sets = task.files if local else task.hub
    if name not in sets.test:
        known = f"it has {', '.join(sets.test)}" if sets.test else "name one under task.files.test or task.hub.test"
        if name in ("train", *sets.dev):
            known = f"{name} has labels: `bitkd evaluate` reads it"
        raise InputError(f"task {task.name} has no test set {name}; {known}")
