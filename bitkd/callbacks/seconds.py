"""How long a fit took, over all its resumptions."""

import time
from typing import Any

import lightning.pytorch as pl
from typing_extensions import override


class TrainingSeconds(pl.Callback):
    """Counts the seconds of a fit, validation included; a checkpoint holds them, and a resumed fit adds to them.

    before: seconds of work that the fit needs once, before its first step.
    """

    def __init__(self, before: float = 0.0) -> None:
        self.seconds = before
        self._counted_at = time.monotonic()

    @override
    def state_dict(self) -> dict[str, Any]:
        self._count()
        return {"seconds": self.seconds}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = state_dict["seconds"]

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._counted_at = time.monotonic()

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._count()

    def _count(self) -> None:
        now = time.monotonic()
        self.seconds += now - self._counted_at
        self._counted_at = now
