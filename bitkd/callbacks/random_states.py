"""The random states of a training: seeded at its start, kept in its checkpoints, restored when it is resumed."""

import random
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from typing_extensions import override


class RandomStates(pl.Callback):
    """Seeds each rank's random generators when a training starts, so that dropout does not depend on how the model was
    built. A checkpoint holds the states of all ranks; a resumed training continues with them.

    seed: rank r uses seed + r.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._resumed: list[dict[str, Any]] | None = None

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["random_states"] = gather(trainer, random_state())

    @override
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._resumed = checkpoint["random_states"]

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._resumed is not None:
            set_random_state(self._resumed[trainer.global_rank])
            return
        seed = self.seed + trainer.global_rank
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)


def gather(trainer: pl.Trainer, value: Any) -> list[Any]:
    """The values of all ranks, in their order."""
    values: list[Any] = [value]
    if trainer.world_size > 1:
        values = [None] * trainer.world_size
        torch.distributed.all_gather_object(values, value)
    return values


def random_state() -> dict[str, Any]:
    """The random states of Python, numpy and torch as plain numbers and tensors (torch.load with `weights_only` allows
    nothing else)."""
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
