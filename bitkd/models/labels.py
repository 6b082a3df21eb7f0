"""Which output of a classifier belongs to which label. It imports no torch, so that planning needs none."""

from bitkd.errors import InputError


def label_order(own: list[str], task_labels: list[str] | None, names: list[str] | None = None) -> list[int]:
    """The output of a classifier for each label of the task, by name.

    own: label names of its outputs.  task_labels: None for a regression.  names: used instead of `own`.
    Raises InputError if counts differ or names cannot be matched: the order of labels differs between sources, so
    outputs are never matched by position.
    """
    found = names or own
    if task_labels is None:
        if len(found) != 1:
            raise InputError(
                f"the checkpoint has {len(found)} labels {found}; the task is a regression with one output"
            )
        return [0]
    if len(found) != len(task_labels) or len(own) != len(task_labels):
        raise InputError(
            f"the checkpoint has {len(own)} labels {found}; the task has {len(task_labels)}: "
            f"{task_labels}; use a checkpoint of this task"
        )
    position = {_normal(name): i for i, name in enumerate(found)}
    if set(position) != {_normal(name) for name in task_labels}:
        raise InputError(
            f"the checkpoint's labels {found} cannot be mapped to the task's {task_labels} by name; name them in the "
            "checkpoint's order (stages.teacher.labels=[…] in a run, --labels in evaluate and predict)"
        )
    return [position[_normal(name)] for name in task_labels]


def _normal(name: str) -> str:
    return name.strip().lower().replace("-", "_").replace(" ", "_")
