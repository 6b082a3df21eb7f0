"""Checkpoints inside a stage: the best student so far, and what is needed to resume a fit exactly."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor, nn
from typing_extensions import override

from bitkd.callbacks.random_states import gather, random_state, set_random_state
from bitkd.callbacks.step_end import StepEnd, Vote
from bitkd.errors import InputError

KEPT = 2
"""How many resume checkpoints are kept: the newest, and one more in case the newest is damaged."""

UNREAD_BATCHES = 500
"""Batches whose position in a stream stays on the device; to read one waits for the device."""


class BestCheckpoint(Checkpoint):
    """Keeps the module's weights of the best validation so far in host memory, which takes one copy of the module.

    They are written, to `folder/best-N.ckpt` with N the step, when a checkpoint to resume from is saved: a killed fit
    goes on from there and repeats later validations. After the fit, `load_into` puts them into the module, on any rank.

    monitor: name of the logged metric that decides; larger is better.
    counts_start: validate before the first step, so that the weights that the fit begins with are kept if no later ones
        score more. The random states stay as they were; a resumed fit has this score in its checkpoint.
    curve: (step, score) of every validation.

    Lightning's ModelCheckpoint forgets its best score if its folder has moved; here score and step are part of the resume
    checkpoint, so a moved run folder resumes correctly. Best checkpoints that a resume checkpoint refers to are kept: on
    hardware with non-deterministic sums, a resumed fit may not reach that score again.
    """

    def __init__(self, folder: Path, monitor: str, counts_start: bool = False) -> None:
        self.folder = Path(folder)
        self.monitor = monitor
        self.counts_start = counts_start
        self.score: float | None = None
        self.step = 0
        self.curve: list[list[float]] = []
        self._referenced: list[int] = []
        self._weights: dict[str, Tensor] = {}  # empty: they are only in the file
        self._written = True
        self._copied: Any = None  # CUDA event

    @property
    def file(self) -> Path:
        """Where the best weights are, once a checkpoint has been saved."""
        return self.folder / f"best-{self.step:09d}.ckpt"

    def load_into(self, module: nn.Module) -> None:
        """Put the best weights into the module."""
        if self._weights:
            self._wait()
            module.load_state_dict(self._weights)
        else:
            module.load_state_dict(torch.load(self.file, map_location="cpu", weights_only=True)["state_dict"])

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._referenced = [*self._referenced, self.step][-KEPT - 1 :]
        if not trainer.is_global_zero or self._written:
            return
        self._wait()
        with _replaced(self.file) as temporary:
            torch.save({"state_dict": self._weights}, temporary)
        self._written = True
        needed = {self.folder / f"best-{step:09d}.ckpt" for step in self._referenced}
        for old in {*self.folder.glob("best-*.ckpt")} - needed:
            old.unlink()

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score, "step": self.step, "named": self._referenced, "curve": self.curve}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.score, self.step, self.curve = state_dict["score"], state_dict["step"], state_dict["curve"]
        self._referenced = [*state_dict["named"], self.step]
        self._weights, self._written = {}, True

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.counts_start and trainer.global_step == 0:
            _validate_now(trainer)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        score = float(trainer.callback_metrics[self.monitor])
        self.curve = [*self.curve, [trainer.global_step, score]]
        if self.score is None or score > self.score:
            self.score, self.step = score, trainer.global_step
            self._copy(trainer.strategy.lightning_module_state_dict())

    def _copy(self, weights: dict[str, Tensor]) -> None:
        if weights.keys() != self._weights.keys():
            self._weights = {
                name: torch.empty(weight.shape, dtype=weight.dtype, pin_memory=weight.is_cuda)
                for name, weight in weights.items()
            }
        with torch.no_grad():
            for name, weight in weights.items():
                self._weights[name].copy_(weight, non_blocking=True)
        self._written = False
        if any(weight.is_cuda for weight in weights.values()):
            self._copied = torch.cuda.Event()
            self._copied.record()

    def _wait(self) -> None:
        """Until the copy is complete."""
        if self._copied is not None:
            self._copied.synchronize()


def _validate_now(trainer: pl.Trainer) -> None:
    """A validation of the fit before its first step, as Lightning makes those between its steps."""
    states, connector = random_state(), trainer._logger_connector
    first = connector._first_loop_iter
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True
    connector._first_loop_iter = first
    set_random_state(states)


class ResumeCheckpoint(StepEnd):
    """Saves `folder/step-N.ckpt` every `every_minutes` and every `every_steps`, and keeps the last two. A validation
    saves none: short stages validate every few seconds, and a resumed fit repeats the validation exactly.

    Lightning restores step, optimizer and schedule; this callback restores the position in the data. With RandomStates,
    a resumed fit ends with the weights of an uninterrupted one.

    The Trainer's data module needs `resume(batch, positions)`, as bitkd's have; the fit must be one Lightning epoch
    (`LoaderSpec.total_batches`). Raises InputError at the start of a fit without such a data module.
    """

    def __init__(self, folder: Path, every_minutes: float = 5.0, every_steps: int | None = None) -> None:
        self.folder = Path(folder)
        self.every_minutes = every_minutes
        self.every_steps = every_steps
        self._saved_at = time.monotonic()
        self._saved_step = -1
        self._positions: dict[int, list[int]] = {}
        self._unread: list[Tensor] = []
        self._vote = Vote()

    def save(self, trainer: pl.Trainer) -> None:
        """Save now, unless this step is saved already."""
        if trainer.global_step == self._saved_step:
            return
        save_checkpoint(trainer, self.folder / f"step-{trainer.global_step:09d}.ckpt")
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
        if trainer.is_global_zero:
            for old in sorted(self.folder.glob("step-*.ckpt"))[:-KEPT]:
                old.unlink()

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit" and not hasattr(_data_of(trainer), "resume"):
            raise InputError(
                "ResumeCheckpoint cannot resume a fit without a data module that has resume(batch, positions); use one of "
                "bitkd.data.modules"
            )

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._read_positions()
        checkpoint["stream_positions"] = gather(trainer, self._positions)

    @override
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._positions = checkpoint["stream_positions"][trainer.global_rank]
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        _data_of(trainer).resume(progress["ready"], self._positions)

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._saved_at = time.monotonic()

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if isinstance(batch, dict) and "position" in batch:  # only in batches of a stream: how far a reader has come
            self._unread.append(batch["position"])
            if len(self._unread) >= UNREAD_BATCHES:
                self._read_positions()
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def _read_positions(self) -> None:
        if self._unread:
            for reader, *place in torch.stack(self._unread).tolist():
                self._positions[reader] = place
            self._unread.clear()

    @override
    def after_step(self, trainer: pl.Trainer, validated: bool) -> None:
        late = time.monotonic() - self._saved_at >= 60 * self.every_minutes
        due = self._vote.ask(trainer, late, validated)
        if due or (self.every_steps and trainer.global_step % self.every_steps == 0):
            self.save(trainer)


def _data_of(trainer: pl.Trainer) -> Any:
    return trainer.datamodule  # type: ignore[attr-defined]


def save_checkpoint(trainer: pl.Trainer, file: Path) -> None:
    """Write a Lightning checkpoint. A module with `check_losses()` is asked first whether its losses were finite."""
    check = getattr(trainer.lightning_module, "check_losses", None)
    if check is not None:  # before other ranks are waited for: if one fails here, none can save
        check()
    with _replaced(file, trainer.is_global_zero) as temporary:
        trainer.save_checkpoint(temporary)


@contextmanager
def _replaced(file: Path, writes: bool = True) -> Iterator[Path]:
    """A temporary name for the block to write to; renamed to `file` after it, so that `file` is never half written.

    writes: whether this process writes; the block may only take part in what rank zero writes.
    """
    temporary = file.with_suffix(".tmp")
    try:
        yield temporary
        if writes:
            with open(temporary, "rb") as stream:
                os.fsync(stream.fileno())
            os.replace(temporary, file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(f"{file} cannot be written ({error.strerror or error})") from error


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in `folder` that is not damaged; None if there is none."""
    for file in sorted(Path(folder).glob("step-*.ckpt"), reverse=True):
        try:
            torch.load(file, map_location="cpu", weights_only=True)
        except Exception:  # torch.load raises many types if a file is damaged
            continue
        return file
    return None
