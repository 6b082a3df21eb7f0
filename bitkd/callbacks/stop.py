"""Callbacks for the end of a fit: stop early on request, and validate the last step."""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from typing_extensions import override

from bitkd.callbacks.step_end import StepEnd, Vote
from bitkd.errors import StoppedError


class StopRequest(StepEnd):
    """Ends the fit after the step in which a stop was requested on any rank: saves, then raises StoppedError on all.

    requested: called after each step; returns whether to stop.
    save: writes a checkpoint, such as `ResumeCheckpoint.save`.
    """

    def __init__(self, requested: Callable[[], bool], save: Callable[[pl.Trainer], None]) -> None:
        self.requested = requested
        self.save = save
        self._vote = Vote()

    @override
    def after_step(self, trainer: pl.Trainer, validated: bool) -> None:
        if self._vote.ask(trainer, self.requested(), validated):
            self.save(trainer)
            raise StoppedError("asked to stop; the step was finished and saved")


class ValidateLastStep(pl.Callback):
    """Validates after the last of the Trainer's `max_steps`, whether or not the validation interval divides them.

    The Trainer needs `min_epochs=0`.
    """

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if 0 < trainer.max_steps <= trainer.global_step:
            trainer.should_stop = True  # Lightning validates before it stops
