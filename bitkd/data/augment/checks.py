"""Checks of augmentation's settings, and of augmented rows that were made before. It imports no torch, so that planning
needs none.
"""

from pathlib import Path

from bitkd.data.tasks import AugmentSpec
from bitkd.errors import InputError, check_choices
from bitkd.store.records import AugmentedRecord


def check_augmentation(spec: AugmentSpec) -> None:
    """Raises InputError if task.augmentation contradicts itself."""
    where = "task.augmentation"
    check_choices(spec, f"{where}.")
    if not 0 < spec.probability <= 1:
        raise InputError(f"{where}.probability={spec.probability} is outside (0, 1]")
    for name in ("variants", "candidates"):
        if getattr(spec, name) < 1:
            raise InputError(f"{where}.{name}={getattr(spec, name)} is too small; use at least 1")
    if spec.seed < 0:
        raise InputError(f"{where}.seed={spec.seed} is negative; use 0 or more")
    if spec.vectors and not Path(spec.vectors).expanduser().is_file():
        raise InputError(f"{where}.vectors={spec.vectors}: there is no such file; name a file in GloVe's format")
    if spec.path and not Path(spec.path).expanduser().is_dir():
        raise InputError(f"{where}.path={spec.path}: there is no such folder; name one that `bitkd augment` made")


def check_augmented(
    folder: Path, record: AugmentedRecord, task: str, source: str, max_length: int, tokenizer: str
) -> None:
    """Raises InputError if augmented rows were made for another task, of other rows, or with another length or tokenizer.

    folder: of the rows.  record: how they were made.  source, tokenizer: this run's hashes, see AugmentedRecord.
    """
    where = f"task.augmentation.path={folder}"
    if record.task != task:
        raise InputError(f"{where} was made for task {record.task}, this is {task}; augment this task")
    if record.source != source:
        raise InputError(
            f"{where} was made of other training rows (the files, the labels, or data.selection differ); augment these"
        )
    if record.max_length != max_length:
        raise InputError(f"{where} was made with data.max_length={record.max_length}; use that, or augment again")
    if record.tokenizer != tokenizer:
        raise InputError(
            f"{where} was made with another tokenizer than model.pretrained='s; augment again with this one"
        )
