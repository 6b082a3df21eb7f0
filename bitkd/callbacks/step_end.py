"""Acting once an optimizer step is complete, its validation included, and agreeing on it across ranks."""

import math
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from typing_extensions import override

QUESTION_STEPS = 5
"""Steps between two questions to all ranks: each one waits for the device."""


class StepEnd(Checkpoint):
    """Calls `after_step` once after every optimizer step; after its validation, if the step has one.

    It is a Checkpoint so that Lightning calls it after all other callbacks, and in the order of the list among
    checkpoints: a BestCheckpoint before it has already seen the step's score.
    """

    _step = 0
    _awaits_validation = False

    def after_step(self, trainer: pl.Trainer, validated: bool) -> None:
        """What to do. validated: whether the step had a validation."""
        raise NotImplementedError

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._step = trainer.global_step

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:  # gradients are still accumulated
            return
        self._step = trainer.global_step
        interval = trainer.val_check_batch or math.inf
        self._awaits_validation = trainer.should_stop or (batch_idx + 1) % interval == 0
        if not self._awaits_validation:
            self.after_step(trainer, validated=False)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._awaits_validation and trainer.state.fn == "fit":
            self._awaits_validation = False
            self.after_step(trainer, validated=True)


def any_rank(trainer: pl.Trainer, answer: bool, validated: bool) -> bool:
    """Whether any rank's `answer` is true. All ranks are asked every QUESTION_STEPS steps and after each validation,
    which may have been long; False in between.
    """
    if trainer.world_size == 1:
        return answer
    if trainer.global_step % QUESTION_STEPS and not validated:
        return False
    total = torch.tensor(int(answer), dtype=torch.int32, device=trainer.strategy.root_device)
    torch.distributed.all_reduce(total, torch.distributed.ReduceOp.MAX)
    return bool(total)
