"""A callback that acts after each complete optimizer step, validation included; and a vote among ranks."""

import math
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from typing_extensions import override

QUESTION_STEPS = 5
"""Steps between two votes of all ranks. Each vote waits for the device."""


class StepEnd(Checkpoint):
    """Calls `after_step` once after every optimizer step; after its validation, if the step has one.

    It is a Checkpoint because Lightning calls checkpoints after all other callbacks, in the order of the list. A
    BestCheckpoint that is listed before it has therefore seen the step's score.
    """

    _step = 0
    _awaits_validation = False

    def after_step(self, trainer: pl.Trainer, validated: bool) -> None:
        """Called after a step.  validated: whether the step had a validation."""
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
    """Whether `answer` is true on any rank. The ranks vote every QUESTION_STEPS steps, and after each validation
    because it may take long; in between the result is False.
    """
    if trainer.world_size == 1:
        return answer
    if trainer.global_step % QUESTION_STEPS and not validated:
        return False
    total = torch.tensor(int(answer), dtype=torch.int32, device=trainer.strategy.root_device)
    torch.distributed.all_reduce(total, torch.distributed.ReduceOp.MAX)
    return bool(total)
