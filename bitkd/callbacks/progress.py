"""How far a stage is: one line that changes in a terminal, or a line from time to time elsewhere."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from typing_extensions import override

LINE_SECONDS = 60.0
"""Without a terminal, a line is printed this often."""

GAP = 2
"""Columns between two parts of the line."""

NARROWEST, WIDEST = 8, 40
"""Columns of the bar. If there is less room, none is drawn."""


class Progress(pl.Callback):
    """Shows the step, the training loss, the last dev score and the time that is left, on rank zero.

    The loss is the module's `latest_loss`, a number or None; to read a logged one would wait for the device.

    console: its `print` gets the lines; for a live display it is rich's Console.
    name: of the stage, such as "stage 2 of 8: stage1".
    score: name of what `dev/score` measures, such as accuracy; None if it is the negative dev loss.
    live: draw one line that changes, inside of `shown`; else print a line every LINE_SECONDS.
    """

    def __init__(self, console: Any, name: str, score: str | None, live: bool) -> None:
        self.console = console
        self.name = name
        self.score_name = score
        self.step = 0
        self.total = 0
        self.loss: float | None = None
        self.score: float | None = None
        self._live = live
        self._validated: tuple[int, float] | None = None  # batches of the validation that is running: done, and all
        self._training = False
        self._resumed_at = 0
        self._timed_from: tuple[int, float] | None = None
        self._printed_at = time.monotonic()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Draw the line while the block runs; afterwards it is gone."""
        if not self._live:
            yield
            return
        # What others print to a terminal must go above the line, and what they print to a file must stay there.
        with Live(self, console=self.console, transient=True, redirect_stdout=not self.console.stderr):
            yield

    @property
    def seconds_left(self) -> float | None:
        """Estimated from the mean time of this process's steps but the first; None before the second."""
        if self._timed_from is None or self.step == self._timed_from[0]:
            return None
        step, began = self._timed_from
        return (time.monotonic() - began) / (self.step - step) * (self.total - self.step)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        choices = list(self._choices())
        parts = next((parts for parts in choices if _width(parts) <= options.max_width), choices[-1])
        room = options.max_width - _width(parts) - GAP
        if room < NARROWEST or not self.total:
            yield Text((" " * GAP).join(parts), no_wrap=True, overflow="crop")
            return
        line = Table.grid(padding=(0, GAP, 0, 0))
        line.add_row(parts[0], ProgressBar(self.total, self.step, width=min(room, WIDEST)), *parts[1:])
        yield line

    def _choices(self) -> Iterator[list[str]]:
        """What the line can say, the longest first. The stage's name also stands in the line printed before."""
        number = self.name.partition(":")[0]
        if self._validated is not None:
            done, batches = self._validated
            state = f"validating {done}/{batches:.0f}" if math.isfinite(batches) else f"validating {done}"
        else:
            state = "loss –" if self.loss is None else f"loss {_text(self.loss)}"
        if not self.total:  # nothing is trained
            yield from ([self.name, state], [number, state], [state])
            return
        step = f"{self.step}/{self.total}"
        left = self.seconds_left
        eta = [f"ETA {'–' if left is None else timedelta(seconds=round(left))}"] if self._training else []
        score = [] if self.score is None else [f"dev {self.score_name or 'loss'} {_text(self.score)}"]
        yield [self.name, f"step {step}", state, *score, *eta]
        yield [self.name, step, state, *score, *eta]
        yield [self.name, step, state, *eta]
        yield [number, step, state, *eta]
        yield [step, state, *eta]
        yield [step, state]
        yield [step]

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.step = self._resumed_at = trainer.global_step
        self.total, self._training = int(trainer.max_steps), True
        self._printed_at = time.monotonic()
        if self.step and trainer.is_global_zero:
            self.console.print(f"{self.name} goes on at step {self.step} of {self.total}")

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now, self.step = time.monotonic(), trainer.global_step
        if self._timed_from is None and self.step > self._resumed_at:
            self._timed_from = (self.step, now)
        if not trainer.is_global_zero:
            return
        self.loss = getattr(pl_module, "latest_loss", None)
        if not self._live and now - self._printed_at >= LINE_SECONDS:
            self._printed_at = now
            self.console.print(", ".join(next(self._choices())))

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._training = False

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validated = (0, float(sum(trainer.num_val_batches)))

    @override
    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._validated is not None:
            self._validated = (self._validated[0] + 1, self._validated[1])

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validated = None
        found = trainer.callback_metrics.get("dev/score")
        score = None if found is None else float(found)
        self.score = -score if score is not None and self.score_name is None else score


def _text(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.3e}"


def _width(parts: list[str]) -> int:
    return sum(map(cell_len, parts)) + GAP * (len(parts) - 1)
