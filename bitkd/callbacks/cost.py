"""What a fit costs in floating-point operations, the teacher's forwards included."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from typing_extensions import override

from bitkd.stages.base import StudentModule
from bitkd.stages.distillation import DistillationModule

PROBES = (2, 4, 6)
"""Lengths that a row's FLOPs are counted at: a polynomial of degree 2 in the length is known from three."""


class TrainingFlops(pl.Callback):
    """Counts the FLOPs of a fit, over all processes and resumptions: of the student's forward and backward, and of the teacher's
    forwards.

    Counted by torch.utils.flop_counter: two for each multiplication and addition of a matrix product; what is elementwise does
    not count, nor does validation. A row's FLOPs depend on nothing but its padded length, in which they are quadratic, so
    three short rows are counted and the rest is arithmetic.
    """

    def __init__(self) -> None:
        self.student = self.teacher = 0
        self._curves: tuple[Polynomial, Polynomial] | None = None
        self._rows = [0, 0, 0]  # of this rank: sums over rows of 1, length, length squared

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: dict[str, Tensor], batch_idx: int
    ) -> None:
        if self._curves is None:
            assert isinstance(pl_module, StudentModule)
            self._curves = row_flops(pl_module, batch)

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: dict[str, Tensor], batch_idx: int
    ) -> None:
        rows, length = batch["input_ids"].shape
        self._rows = [total + rows * length**power for power, total in enumerate(self._rows)]

    @override
    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        checkpoint["flops"] = {"curves": self._curves, "rows": self._over_all_ranks(trainer)}

    @override
    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        self._curves = checkpoint["flops"]["curves"]
        self._rows = checkpoint["flops"]["rows"] if trainer.is_global_zero else [0, 0, 0]

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert self._curves is not None
        sums = self._over_all_ranks(trainer)
        self.student, self.teacher = (sum(c * s for c, s in zip(curve, sums)) for curve in self._curves)

    def _over_all_ranks(self, trainer: pl.Trainer) -> list[int]:
        if trainer.world_size == 1:
            return list(self._rows)
        sums = torch.tensor(self._rows, dtype=torch.int64, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(sums)
        return sums.tolist()


Polynomial = tuple[int, int, int]
"""FLOPs of a row of length L: c0 + c1 · L + c2 · L²."""


def row_flops(module: StudentModule, batch: dict[str, Tensor]) -> tuple[Polynomial, Polynomial]:
    """FLOPs of one training row by its padded length: of the student's forward and backward, and of the teacher's forward.

    batch: any training batch, for its columns. No random number is drawn and no gradient is left behind.
    """
    students, teachers = [], []
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    device = module.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for length in PROBES:
            row = {name: _row(column, length) for name, column in batch.items()}
            with FlopCounterMode(display=False) as counter:
                loss = torch.stack([term.float() for term in module.loss_terms(row).values()]).sum()
                # Not `backward`: it would leave gradients, and wake DDP.
                torch.autograd.grad(loss, trained, allow_unused=True)
            with FlopCounterMode(display=False) as of_teacher, torch.no_grad():
                if isinstance(module, DistillationModule):
                    module.teacher(**module.inputs(row))
            teachers.append(of_teacher.get_total_flops())
            students.append(counter.get_total_flops() - teachers[-1])
    return _fit(students), _fit(teachers)


def _row(column: Tensor, length: int) -> Tensor:
    return torch.ones_like(column[:1, :1]).expand(1, length) if column.dim() == 2 else column[:1]


def _fit(flops: list[int]) -> Polynomial:
    """The polynomial through the FLOPs at PROBES, which are equally far apart."""
    first, second, third = flops
    step, start = PROBES[1] - PROBES[0], PROBES[0]
    square = (third - 2 * second + first) // (2 * step**2)
    linear = (second - first) // step - square * (2 * start + step)
    return first - linear * start - square * start**2, linear, square
