"""What augmented rows say of themselves, and what they are asked. It needs no torch, so that a plan can be made without."""

from dataclasses import dataclass
from pathlib import Path

from bitkd.data.tasks import AugmentSpec
from bitkd.errors import InputError


@dataclass(frozen=True)
class Augmented:
    """What a folder of augmented rows says of itself.  source: hash of the rows that it was made of, without those held
    out.  sources: how many they were.  tokenizer: hash of the tokenizer's state.
    """

    task: str
    source: str
    sources: int
    rows: int
    truncated: int
    max_length: int
    tokenizer: str


def check_augmentation(spec: AugmentSpec) -> None:
    """InputError where task.augmentation contradicts itself."""
    where = "task.augmentation"
    if spec.source not in ("auto", "masked_lm", "vectors"):
        raise InputError(f"{where}.source={spec.source} is unknown; use auto, masked_lm or vectors")
    if spec.precision not in ("32-true", "bf16-mixed"):
        raise InputError(f"{where}.precision={spec.precision} is unsupported; use 32-true or bf16-mixed")
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


def check_augmented(folder: Path, facts: Augmented, task: str, source: str, max_length: int, tokenizer: str) -> None:
    """InputError where augmented rows were made for another task, of other rows, or with another length or tokenizer."""
    where = f"task.augmentation.path={folder}"
    if facts.task != task:
        raise InputError(f"{where} was made for task {facts.task}, this is {task}; augment this task")
    if facts.source != source:
        raise InputError(
            f"{where} was made of other training rows (the files, the labels, or data.selection differ); augment these"
        )
    if facts.max_length != max_length:
        raise InputError(f"{where} was made with data.max_length={facts.max_length}; use that, or augment again")
    if facts.tokenizer != tokenizer:
        raise InputError(
            f"{where} was made with another tokenizer than model.pretrained='s; augment again with this one"
        )
