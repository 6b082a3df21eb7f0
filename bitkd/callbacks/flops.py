"""What a fit costs in floating-point operations, the teacher's forward passes included."""

from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from typing_extensions import override

RowFlops = tuple[int, ...]
"""Coefficients c0, c1, c2 of a row's FLOPs by its padded length L: c0 + c1 · L + c2 · L²."""


class TrainingFlops(pl.Callback):
    """Counts the rows, the tokens and the FLOPs of a fit, over all processes and resumptions; validation does not count.

    A row is one of the batch's input_ids: of sentence similarity each text of a pair, of a task with windows each window.

    count: takes the module and a batch, and returns the RowFlops of the student's forward and backward, and of the
        teacher's forwards (bitkd.stages.flops.row_flops).
    teacher_rows: sums over rows of 1, padded length and its square, if the teacher has run once over these rows before
        the fit, in place of its forward in every step.
    examples, student, teacher: after the fit, rows trained on, and the FLOPs of student and teacher.
    padded_tokens, tokens: the rows' tokens with padding and without. `tokens` is None if part of the fit was made by a
        version that did not count them.
    """

    padded_tokens = 0
    tokens: int | None = 0

    def __init__(
        self,
        count: Callable[[Any, dict[str, Tensor]], tuple[RowFlops, RowFlops]],
        teacher_rows: Sequence[int] | None = None,
    ) -> None:
        self._count = count
        self._teacher_rows = teacher_rows
        self.student = self.teacher = self.examples = 0
        self._curves: tuple[RowFlops, RowFlops] | None = None
        self._rows = [0, 0, 0]  # of this rank: sums over rows of 1, length, length squared
        self._tokens: Tensor | int | None = 0  # of this rank; on the device, because to read a number waits for it

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: dict[str, Tensor], batch_idx: int
    ) -> None:
        if self._curves is None:
            self._curves = self._count(pl_module, batch)

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: dict[str, Tensor], batch_idx: int
    ) -> None:
        rows, length = batch["input_ids"].shape
        self._rows = [total + rows * length**power for power, total in enumerate(self._rows)]
        if self._tokens is not None:
            self._tokens = batch["attention_mask"].sum() + self._tokens

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        rows, tokens = self._over_all_ranks(trainer)
        checkpoint["flops"] = {"curves": self._curves, "rows": rows, "tokens": tokens}

    @override
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._curves = checkpoint["flops"]["curves"]
        rows, tokens = checkpoint["flops"]["rows"], checkpoint["flops"].get("tokens")
        self._rows = rows if trainer.is_global_zero else [0, 0, 0]
        self._tokens = tokens if trainer.is_global_zero or tokens is None else 0
        self._set_totals(rows, tokens)  # if no step is left to run, on_train_end is not called

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._set_totals(*self._over_all_ranks(trainer))

    def _set_totals(self, sums: list[int], tokens: int | None) -> None:
        if self._curves is None:  # no batch was trained on
            return
        self.examples, self.padded_tokens, self.tokens = sums[0], sums[1], tokens
        rows = sums, sums if self._teacher_rows is None else self._teacher_rows
        self.student, self.teacher = (sum(c * s for c, s in zip(*pair)) for pair in zip(self._curves, rows))

    def _over_all_ranks(self, trainer: pl.Trainer) -> tuple[list[int], int | None]:
        """The sums of all ranks, and their tokens."""
        own = [*self._rows, int(self._tokens or 0)]
        if trainer.world_size > 1:
            sums = torch.tensor(own, dtype=torch.int64, device=trainer.strategy.root_device)
            torch.distributed.all_reduce(sums)
            own = sums.tolist()
        return own[:3], None if self._tokens is None else own[3]
