"""How long a fit took, over all its resumptions, and how much of that was no training."""

import time
from typing import Any

import lightning.pytorch as pl
import torch
from typing_extensions import override

TRAINING, VALIDATION, SAVING = "training", "validation", "saving"


class TrainingSeconds(pl.Callback):
    """Counts the seconds of a fit; a checkpoint holds them up to its own writing, and a resumed fit adds to them.

    A validation, and the saving of a checkpoint, last until the next step: what other callbacks do then belongs to them. List
    it before the callbacks that save.

    before: seconds of work that the fit needs once, before its first step; they count as training.
    """

    def __init__(self, before: float = 0.0) -> None:
        self.before = before
        self._spent: dict[str, float] = {TRAINING: before, VALIDATION: 0.0, SAVING: 0.0}
        self._complete = True
        self._doing = TRAINING
        self._counted_at = time.monotonic()

    @property
    def seconds(self) -> float:
        """All of them."""
        return sum(self._spent.values())

    @property
    def facts(self) -> dict[str, float | None]:
        """The fields of a StageRecord, in seconds.

        Those of validation and saving are None if part of the fit was made by a version that did not measure them.
        """
        found: dict[str, float | None] = {"seconds": self.seconds}
        for name in (VALIDATION, SAVING):
            found[f"{name}_seconds"] = round(self._spent[name], 2) if self._complete else None
        return found

    @override
    def state_dict(self) -> dict[str, Any]:
        self._count()
        return {"spent": dict(self._spent), "before": self.before, "complete": self._complete}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "spent" in state_dict:
            self._spent = dict(state_dict["spent"])
            self.before, self._complete = state_dict["before"], state_dict["complete"]
        else:
            self._spent, self._complete = {TRAINING: state_dict["seconds"], VALIDATION: 0.0, SAVING: 0.0}, False

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._counted_at = time.monotonic()

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._doing != TRAINING:
            self._begin(TRAINING)

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin(VALIDATION, pl_module)

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._begin(SAVING, pl_module)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._count()

    def _begin(self, doing: str, module: pl.LightningModule | None = None) -> None:
        """module: on a GPU, its steps before are waited for; validating and saving would wait for them too."""
        if module is not None and module.device.type == "cuda":
            torch.cuda.synchronize(module.device)
        self._count()
        self._doing = doing

    def _count(self) -> None:
        now = time.monotonic()
        self._spent[self._doing] += now - self._counted_at
        self._counted_at = now
