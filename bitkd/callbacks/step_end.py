"""A callback that acts after each complete optimizer step, validation included; and votes among ranks."""

import math
from functools import lru_cache
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Checkpoint
from typing_extensions import override

QUESTION_STEPS = 5
"""Steps between two votes of all ranks."""


class Vote:
    """One question that all ranks answer again and again; all get the same result at the same step.

    A vote goes over the host's network, beside the training: neither device nor other ranks are waited for, unless one is
    more than QUESTION_STEPS steps behind.
    """

    def __init__(self) -> None:
        self._answer = torch.zeros(1, dtype=torch.int32)
        self._begun: Any = None

    def ask(self, trainer: pl.Trainer, answer: bool, validated: bool) -> bool:
        """Whether any rank answered yes. Call it on all ranks after each step, with this rank's answer.

        Every QUESTION_STEPS steps a vote begins, and the one before is read: a yes is heard that many steps later. After a
        validation, which may take long, the result is of this step. In between it is False. A single process hears itself
        at once.
        """
        if trainer.world_size == 1:
            return answer
        if trainer.global_step % QUESTION_STEPS and not validated:
            return False
        result = self._read()
        if validated:
            self._begin(answer)
            return self._read() or result
        if not result:  # after a yes the answer is about to change
            self._begin(answer)
        return result

    def _begin(self, answer: bool) -> None:
        self._answer.fill_(int(answer))
        group = _on_the_host(dist.group.WORLD)
        self._begun = dist.all_reduce(self._answer, dist.ReduceOp.MAX, group=group, async_op=True)

    def _read(self) -> bool:
        if self._begun is None:
            return False
        self._begun.wait()
        self._begun = None
        return bool(self._answer)


@lru_cache(maxsize=1)
def _on_the_host(world: Any) -> Any:
    """A group of all ranks of `world` whose messages are sent by the host, made once by all ranks together."""
    return dist.new_group(backend="gloo")


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
