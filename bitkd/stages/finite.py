"""The check that every training loss is finite, without waiting for the device."""

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DELAY = 20
"""Steps after which a loss on a device is looked at even if that waits for the device."""


class NonFiniteLossError(RuntimeError):
    """A loss became NaN or infinite; the message names the term and the batch."""


@dataclass(frozen=True)
class _Loss:
    """The loss of one batch, on its way to the host."""

    terms: Tensor
    arrived: Any
    """A CUDA event; None on other devices."""
    names: list[str]
    batch: int
    step: int
    rows: Tensor | None


class FiniteCheck:
    """Raises NonFiniteLossError for the first batch whose loss is NaN or infinite.

    On a CPU each loss is looked at at once. On CUDA it is copied to the host while the device goes on, and looked at when
    the copy is there, at most `delay` batches later. So ask `finish` before anything that was trained is kept.

    delay: None is 0 on a CPU and DELAY on CUDA. A positive number also delays on a CPU.
    latest: the newest loss that is known on the host; None before the first.
    """

    def __init__(self, delay: int | None = None) -> None:
        self.delay = delay
        self.latest: float | None = None
        self._waiting: deque[_Loss] = deque()

    def add(self, terms: Tensor, names: list[str], batch: int, step: int, rows: Tensor | None = None) -> None:
        """Take the loss of a batch, and look at the earlier ones that have arrived.

        terms: (terms,) FP32, in the order of `names`.  batch, step, rows: for the message; rows (batch,) row numbers.
        """
        arrived = None
        if terms.is_cuda:
            terms = terms.to("cpu", non_blocking=True)  # into pinned memory
            arrived = torch.cuda.Event()
            arrived.record()
        delay = self.delay if self.delay is not None else DELAY if arrived is not None else 0
        self._waiting.append(_Loss(terms, arrived, names, batch, step, rows))
        while self._waiting and (len(self._waiting) > delay or _has_arrived(self._waiting[0])):
            self._look()

    def finish(self) -> None:
        """Look at all losses that were not looked at yet; waits for the device."""
        while self._waiting:
            self._look()

    def _look(self) -> None:
        loss = self._waiting.popleft()
        if loss.arrived is not None:
            loss.arrived.synchronize()
        values = loss.terms.tolist()
        total = sum(values)
        if math.isfinite(total) and abs(total) <= torch.finfo(torch.float32).max:
            self.latest = total
            return
        self._waiting.clear()
        bad = [name for name, value in zip(loss.names, values) if not math.isfinite(value)] or ["total"]
        rows = loss.rows.tolist() if loss.rows is not None else []
        raise NonFiniteLossError(
            f"loss term {', '.join(bad)} is not finite at batch {loss.batch} (step {loss.step}, rows "
            f"{rows[:8]}{'…' if len(rows) > 8 else ''}); lower the learning rate or use trainer.precision=32-true. "
            "The last good checkpoint is kept"
        )


def _has_arrived(loss: _Loss) -> bool:
    return loss.arrived is not None and bool(loss.arrived.query())
