"""How many examples per second a fit processes."""

import time
from typing import Any

import lightning.pytorch as pl
from typing_extensions import override


class Throughput(pl.Callback):
    """Logs `train/examples_per_second` over all processes, averaged since the previous log row.

    Lightning's ThroughputMonitor logs nothing until its window of a hundred batches is full, and a short stage ends
    before that.
    """

    def __init__(self) -> None:
        self._examples = 0
        self._since = time.monotonic()

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._examples == 0:  # validation and checkpoints before this batch do not count
            self._since = time.monotonic()

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._examples += len(batch["input_ids"]) * trainer.world_size
        if (batch_idx + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            pl_module.log("train/examples_per_second", self._examples / (time.monotonic() - self._since))
            self._examples = 0

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._examples = 0
