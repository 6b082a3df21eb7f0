"""A planned stage: all its settings are resolved."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from bitkd.config.schema import PRETRAINED, StageSpec, TrainSpec
from bitkd.data.tasks import TaskSpec
from bitkd.stages.kinds import Kind


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a run. Planning fills in the steps and then the fingerprint, each in a copy."""

    name: str
    spec: StageSpec
    kind: Kind
    train: TrainSpec
    seed: int
    upstream: dict[str, str]
    """Role (student, teacher, data) -> node or source."""

    checkpoint: Path | None = None
    """Local folder of a fine-tuned teacher that was given."""

    augmented: Path | None = None
    """Folder of augmented rows that were given."""

    total_steps: int = 0
    eval_every: int = 0
    rows: int | None = None
    """Training rows; None for a stream, and while they are augmented rows that do not exist yet."""

    steps_known: bool = True
    """False while the number of steps depends on augmented rows that do not exist yet."""

    fingerprint: str = ""

    @property
    def title(self) -> str:
        return self.spec.title or self.name

    @property
    def key(self) -> str:
        """Name of the artifact's folder in the store."""
        return f"{self.kind.name}-{self.fingerprint}"

    @property
    def trains(self) -> bool:
        return self.kind.trains and self.checkpoint is None

    @property
    def has_new_head(self) -> bool:
        """Whether it begins with a pre-trained encoder and a head that was never trained."""
        return self.kind.fine_tunes and self.spec.student == PRETRAINED

    def keeps_logits(self, setting: str, task: TaskSpec) -> bool:
        """Whether the teacher's logits of all training rows are computed once, before the first step.

        setting: `trainer.keep_teacher_logits`.
        """
        if not self.trains or not self.kind.can_keep_logits(self.spec.loss, task):
            return False
        seen = self.total_steps * self.train.batch_size
        return setting == "always" or (setting == "auto" and self.rows is not None and seen > self.rows)

    def with_steps(self, per_epoch: int | None, rows: int | None = None) -> "PlannedStage":
        """The stage with its steps counted.

        per_epoch: steps of a pass over its rows; None if these do not exist yet.  rows: their number, if it is known.
        """
        train = self.train
        known = per_epoch is not None or bool(train.max_steps and train.eval_every and train.warmup_epochs is None)
        total = train.max_steps or (max(1, math.ceil(train.epochs * per_epoch)) if per_epoch else 0)
        eval_every = min(train.eval_every or per_epoch or 0, total) if known else 0
        if train.warmup_epochs is not None and per_epoch:
            train = replace(train, warmup_ratio=train.warmup_epochs * per_epoch / total)
        return replace(self, train=train, total_steps=total, eval_every=eval_every, steps_known=known, rows=rows)
