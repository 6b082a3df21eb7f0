"""Checkpoints inside a stage: the best student so far, and everything needed to continue a fit exactly."""

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor
from typing_extensions import override

from bitkd.errors import StoppedError

KEPT = 2
"""Resume checkpoints that are kept: the last one, and the one before in case it is damaged."""


class BestCheckpoint(Checkpoint):
    """Keeps the module's weights of the best validation so far, by the metric `monitor` (larger is better), in
    `folder/best-N.ckpt`.  curve: [step, score] of every validation.

    Lightning's ModelCheckpoint forgets its best score where its folder has moved; here score and step travel with the
    resume checkpoint, so a moved run folder resumes rightly. Files that resume checkpoints still name are kept: a fit that
    goes on from one need not come by the same scores again where its sums are not exactly repeatable.
    """

    def __init__(self, folder: Path, monitor: str) -> None:
        self.folder = Path(folder)
        self.monitor = monitor
        self.score: float | None = None
        self.step = 0
        self.curve: list[list[float]] = []
        self._named: list[int] = []

    @property
    def file(self) -> Path:
        """Where the best weights are."""
        return self.folder / f"best-{self.step:09d}.ckpt"

    @override
    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        self._named = [*self._named, self.step][-KEPT - 1 :]

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score, "step": self.step, "named": self._named, "curve": self.curve}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.score, self.step, self.curve = state_dict["score"], state_dict["step"], state_dict["curve"]
        self._named = [*state_dict["named"], self.step]

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        score = float(trainer.callback_metrics[self.monitor])
        self.curve = [*self.curve, [trainer.global_step, score]]
        if self.score is None or score > self.score:
            self.score, self.step = score, trainer.global_step
            save_checkpoint(trainer, self.file, weights_only=True)
            if trainer.is_global_zero:
                needed = {self.folder / f"best-{step:09d}.ckpt" for step in (*self._named, self.step)}
                for old in {*self.folder.glob("best-*.ckpt")} - needed:
                    old.unlink()


STOP_STEPS = 5
"""Steps between two questions to all ranks, whether one was asked to stop and whether it is time to save: a question waits for
the device."""


class ResumeCheckpoint(Checkpoint):
    """Saves `folder/step-N.ckpt` every `every_minutes` and every `every_steps`, and keeps the last two. A validation does not
    save: a short stage validates every few seconds, and repeats a validation exactly.

    Lightning restores step, optimizer and schedule; this callback adds the position in the data, every random state
    of every rank, and the seconds spent, so that a resumed fit ends with the weights of an uninterrupted one. The fit
    must be one Lightning epoch over a sampler that can start at a given batch (bitkd.data.sampler).

    seed: starts the training's own randomness (dropout) of each rank, apart from what building the model consumed.
    asked_to_stop: asked at the end of each step; where it holds on any rank, all of them save and raise StoppedError.
    """

    def __init__(
        self,
        folder: Path,
        seed: int,
        every_minutes: float = 5.0,
        every_steps: int | None = None,
        asked_to_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.folder = Path(folder)
        self.seed = seed
        self.every_minutes = every_minutes
        self.every_steps = every_steps
        self.asked_to_stop = asked_to_stop
        self.seconds = 0.0
        self._stop = self._due = False
        self._clock = self._saved_at = time.monotonic()
        self._random_states: list[dict[str, Any]] | None = None
        self._positions: dict[int, list[int]] = {}

    @override
    def state_dict(self) -> dict[str, Any]:
        self._count_seconds()
        return {"seconds": self.seconds}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = state_dict["seconds"]

    @override
    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        states: list[Any] = [random_state()]
        if trainer.world_size > 1:
            states = [None] * trainer.world_size
            torch.distributed.all_gather_object(states, random_state())
        checkpoint["random_states"] = states
        positions: list[Any] = [self._positions]
        if trainer.world_size > 1:
            positions = [None] * trainer.world_size
            torch.distributed.all_gather_object(positions, self._positions)
        checkpoint["stream_positions"] = positions

    @override
    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        self._random_states = checkpoint["random_states"]
        self._positions = checkpoint["stream_positions"][trainer.global_rank]
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        trainer.datamodule.resume(progress["ready"], self._positions)  # type: ignore[attr-defined]

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._random_states is None:
            seed = self.seed + trainer.global_rank
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)
        else:
            set_random_state(self._random_states[trainer.global_rank])
        self._clock = self._saved_at = time.monotonic()

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if isinstance(batch, dict) and "position" in batch:  # of a stream: which of its readers stands where
            reader, *place = batch["position"].tolist()
            self._positions[reader] = place
        self._due = bool(self.every_steps and trainer.global_step % self.every_steps == 0)
        if trainer.global_step >= trainer.max_steps:
            # Validates the last step too, however the number of steps divides by the validation interval.
            trainer.should_stop = True
            return
        accumulating = (batch_idx + 1) % trainer.accumulate_grad_batches != 0
        validates = (batch_idx + 1) % int(trainer.val_check_batch or 1) == 0
        if accumulating:
            return
        self._stop, late = self._ask(trainer)
        self._due = self._due or late
        if not validates:  # else behind the validation, whose score belongs into the checkpoint
            self._save_if_due(trainer)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            stop, late = self._ask(trainer, now=True)  # the validation itself may have been long
            self._stop, self._due = self._stop or stop, self._due or late
            self._save_if_due(trainer)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._count_seconds()

    def _ask(self, trainer: pl.Trainer, now: bool = False) -> tuple[bool, bool]:
        """Whether any rank was asked to stop, and whether any finds that it is time to save."""
        own = self.asked_to_stop(), time.monotonic() - self._saved_at >= 60 * self.every_minutes
        if trainer.world_size == 1:
            return own
        if trainer.global_step % STOP_STEPS and not now:
            return False, False
        answers = torch.tensor(own, dtype=torch.int32, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(answers, torch.distributed.ReduceOp.MAX)
        stop, late = answers.tolist()
        return bool(stop), bool(late)

    def _save_if_due(self, trainer: pl.Trainer) -> None:
        if self._due or self._stop:
            self._save(trainer)
        if self._stop:
            raise StoppedError("asked to stop; the step was finished and saved")

    def _save(self, trainer: pl.Trainer) -> None:
        save_checkpoint(trainer, self.folder / f"step-{trainer.global_step:09d}.ckpt")
        self._saved_at = time.monotonic()
        if trainer.is_global_zero:
            for old in sorted(self.folder.glob("step-*.ckpt"))[:-KEPT]:
                old.unlink()

    def _count_seconds(self) -> None:
        now = time.monotonic()
        self.seconds += now - self._clock
        self._clock = now


def save_checkpoint(trainer: pl.Trainer, file: Path, weights_only: bool = False) -> None:
    """Write a Lightning checkpoint beside `file`, then rename it: a torn file is never visible under its name."""
    temporary = file.with_suffix(".tmp")
    try:
        trainer.save_checkpoint(temporary, weights_only=weights_only)
        if trainer.is_global_zero:
            with open(temporary, "rb") as stream:
                os.fsync(stream.fileno())
            os.replace(temporary, file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(f"{file} cannot be written ({error.strerror or error})") from error


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in `folder` that can be read whole; a damaged one falls back to the one before it."""
    for file in sorted(Path(folder).glob("step-*.ckpt"), reverse=True):
        try:
            torch.load(file, map_location="cpu", weights_only=True)
        except Exception:  # torch.load raises many types on a torn file; each means the same here
            continue
        return file
    return None


def random_state() -> dict[str, Any]:
    """The random states of Python, numpy and torch as plain numbers and tensors (`weights_only` loads no others)."""
    numpy_state: Any = np.random.get_state()
    kind, keys, position, has_gauss, cached = numpy_state
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [str(kind), keys.tolist(), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Restore what `random_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(_as_bytes(state["torch"]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(_as_bytes(state["cuda"]))


def _as_bytes(state: Tensor) -> Tensor:
    return state.cpu().to(torch.uint8)
