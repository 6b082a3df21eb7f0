"""Every row's prediction, saved beside the metrics that are computed from it."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import override

from bitkd.callbacks.random_states import gather
from bitkd.files import follow_umask
from bitkd.store.artifacts import PREDICTIONS_FILE


class Predictions(pl.Callback):
    """Collects logits and labels of a validation, from all ranks, each row once, in the rows' order.

    Where a row's answer is no class and no number, its metrics say what is kept of it (`row_scores`).

    names: the dev sets, in the order of the validation loaders.
    sets: after a validation, dev set -> {"logits": (rows, outputs) FP32, "labels": (rows,)}.
    """

    def __init__(self, names: list[str]) -> None:
        self.sets: dict[str, dict[str, Tensor]] = {}
        self._names = names
        self._batches: list[list[tuple[Tensor, Tensor, Tensor]]] = []

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._batches = [[] for _ in self._names]

    @override
    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: dict[str, Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if outputs is not None:
            self._batches[dataloader_idx].append((batch["index"].cpu(), outputs.cpu(), batch["labels"].cpu()))

    @override
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        gathered = gather(trainer, self._batches)
        if not any(any(rank) for rank in gathered):
            return
        for position, name in enumerate(self._names):
            batches = [batch for rank in gathered for batch in rank[position]]
            index, logits, labels = (torch.cat(column) for column in zip(*batches))
            order = index.argsort()
            self.sets[name] = {"logits": logits[order].contiguous(), "labels": labels[order].contiguous()}

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for name, (scores, labels) in getattr(pl_module, "row_scores", {}).items():
            self.sets[name] = {"logits": scores.contiguous(), "labels": labels.contiguous()}

    def save(self, folder: Path) -> None:
        """Write `predictions.safetensors` with the tensors `<dev set>.logits` and `<dev set>.labels`."""
        tensors = {f"{name}.{part}": tensor for name, parts in self.sets.items() for part, tensor in parts.items()}
        save_file(tensors, folder / PREDICTIONS_FILE)
        follow_umask(folder / PREDICTIONS_FILE)
