"""The base of all stages: it starts a student, validates it on the task, and makes the optimizer that trains it."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from transformers import PreTrainedModel, get_scheduler

from bitkd.errors import InputError
from bitkd.models.encoder import read_spec, refuse_packed
from bitkd.models.heads import CLASSES, Head, head_of
from bitkd.models.importance import Importance
from bitkd.models.inputs import model_inputs, texts_per_row
from bitkd.models.prepare import prepare
from bitkd.models.spec import ShapeSpec
from bitkd.models.student import build_student, kept_sizes
from bitkd.quant.inputs import InputQuantizer
from bitkd.quant.modules import SCALE_NAMES
from bitkd.quant.reuse import hold_codes, release_codes
from bitkd.quant.spec import QuantSpec
from bitkd.stages.bert_adam import BertAdam, clip_each_
from bitkd.stages.cuda_graphs import GraphedLosses, own_stream, uncached_autocast
from bitkd.stages.finite import FiniteCheck
from bitkd.stages.spec import SCORE, OptimSpec


@dataclass(frozen=True)
class Origin:
    """What a stage's student can be made from; each kind takes what it needs in `StudentModule.start`."""

    load: Callable[[], PreTrainedModel]
    """Loads the student of the stage before, or the bare pre-trained encoder."""

    importance: Callable[[PreTrainedModel], Importance]
    """Estimates the importance of a model's heads and neurons, for a student that is made narrower."""

    pretrained: Path | None = None
    """Folder of the pre-trained BERT, if the student comes from it and not from a stage."""

    checkpoint: Path | None = None
    """Folder of a fine-tuned checkpoint that is used as it is."""

    checkpoint_labels: list[str] | None = None
    """The checkpoint's label names in its own order, if its config.json has none."""

    labels: list[str] | None = None
    """The task's label names; None if its answers are no classes."""

    head: Head = CLASSES
    """The head that answers the task."""

    teacher: PreTrainedModel | None = None
    shape: ShapeSpec = field(default_factory=ShapeSpec)
    quant: QuantSpec = field(default_factory=QuantSpec)

    def reshape(self) -> PreTrainedModel:
        """A student of `shape`, made out of the loaded model's layers, heads and neurons."""
        source = self.load()
        spec = read_spec(source)
        narrowed = self.shape.init == "copy" and kept_sizes(self.shape, spec) != (spec.heads, spec.neurons)
        return build_student(source, self.shape, self.importance(source) if narrowed else None)


class MeanLoss(Metric):
    """The mean loss per row, or of tags per labelled token (`Head.label_weight`).

    torchmetrics' MeanMetric looks for NaN in every batch, which waits for the device.
    """

    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("weight", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, loss: Tensor, weight: int | Tensor) -> None:
        """loss: a mean, a scalar.  weight: over how many rows, of tags over how many labelled tokens."""
        self.total = self.total + loss.float() * weight
        self.weight = self.weight + weight

    def compute(self) -> Tensor:
        return self.total / self.weight


class StudentModule(pl.LightningModule):
    """A student under training or validation; by itself it only validates.

    student: the model that is trained.
    optim: learning rate, schedule, weight decay.
    total_steps: optimizer steps of the whole stage, for the schedule; None asks the Trainer.
    metrics: those of each dev set, in the order of the validation loaders, updated with what the student's head answers
        (`Head.answers`); each computes values by name. None validates the mean loss.
    score: takes the first dev set's metrics by name and gives the number that `dev/score` logs, larger is better.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        optim: OptimSpec | None = None,
        total_steps: int | None = None,
        metrics: Mapping[str, MetricCollection | Metric] | None = None,
        score: Callable[[dict[str, float]], float] | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.head = head_of(student)
        self.optim = optim or OptimSpec()
        self.total_steps = total_steps
        self.dev_names = list(metrics or ["dev"])
        self.metrics: Any = nn.ModuleList(metrics.values()) if metrics else None
        self.dev_losses: Any = nn.ModuleList(MeanLoss() for _ in self.dev_names)
        self.finite = FiniteCheck()
        self.row_scores: dict[str, tuple[Tensor, Tensor]] = {}
        self._score = score
        self._graphs: GraphedLosses | None = None

    @classmethod
    def start(cls, origin: Origin) -> PreTrainedModel:
        """The student that a stage of this kind begins with, quantized; here that of the stage before."""
        return prepare(origin.load(), origin.quant)

    def forward(self, **inputs: Tensor) -> Any:
        return self.student(**inputs)

    def loss_terms(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weighted terms of the training loss by name, each a scalar."""
        raise InputError(f"{type(self).__name__} only validates; it has no loss to train with")

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        names, terms = self.losses(batch) if self._graphs is None else self._graphs(batch)
        total = terms.sum()
        self.finite.add(terms.detach(), names, batch_idx, self.global_step, batch.get("index"))
        if self._is_logged():
            self.log("train/loss", total.detach(), prog_bar=True)
            if len(names) > 1:
                self.log_dict({f"train/{name}": term for name, term in zip(names, terms.detach())})
        return total

    def losses(self, batch: dict[str, Tensor]) -> tuple[list[str], Tensor]:
        """The names of the loss terms, and the weighted terms (terms,) in FP32."""
        with uncached_autocast(self.device):
            terms = self.loss_terms(batch)
        return list(terms), torch.stack([term.float() for term in terms.values()])

    def code(self) -> Iterator[Any]:
        """The modules and functions that a training step runs."""
        yield from self.modules()
        yield from filter(None, (getattr(module, "weight_codes", None) for module in self.modules()))

    @contextlib.contextmanager
    def recorded(self, device: torch.device | str) -> Iterator[None]:
        """Inside, training steps on `device` are recorded as CUDA graphs (see GraphedLosses)."""
        self._graphs = GraphedLosses(self, self.losses)
        try:
            with own_stream(device):
                yield
        finally:
            self._graphs = None

    def _is_logged(self) -> bool:
        """Whether Lightning writes a row of the log after this step, or callbacks may look for a metric of this epoch:
        `self.log` takes longer than some kernels."""
        if self._trainer is None:
            return False
        step, every = self.trainer.global_step + 1, self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        last = self.trainer.is_last_batch or step == self.trainer.max_steps
        return bool(every) and (step % every == 0 or last)

    @property
    def latest_loss(self) -> float | None:
        """The newest training loss that is known on the host: on a device, one of the last steps'."""
        return self.finite.latest

    def check_losses(self) -> None:
        """Raise NonFiniteLossError if any loss so far was NaN or infinite. Call it before trained weights are kept."""
        self.finite.finish()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_losses()

    def on_train_end(self) -> None:
        self.check_losses()

    def answer(self, batch: dict[str, Tensor]) -> Tensor:
        """The student's logits in FP32, in the shape of its head."""
        return self.head.logits(self.student(**model_inputs(batch, self.student)), batch).float()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> Tensor | None:
        """Returns the answers of rows that have one number or class each, (batch, outputs); else None."""
        weight: int | Tensor
        if self.metrics is None:
            loss, kept = torch.stack(list(self.loss_terms(batch).values())).sum(), None
            weight = len(batch["input_ids"]) // texts_per_row(batch)
        else:
            logits = self.answer(batch)
            loss, kept = self.head.label_loss(logits, batch), self.head.kept(logits)
            weight = self.head.label_weight(batch)
            self.metrics[dataloader_idx].update(*self.head.answers(logits, batch))
        self.dev_losses[dataloader_idx].update(loss.detach(), weight)
        return kept

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> tuple[Tensor, Tensor]:
        """Numbers of the batch's rows (batch,) and the student's logits."""
        return batch["index"].cpu(), self.answer(batch).cpu()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Weights stay the same until the optimizer's step. A graph cannot read what is freed after it.
        if self.trainer.accumulate_grad_batches > 1 and self._graphs is None:
            hold_codes(self.student)

    def optimizer_step(self, *args: Any, **settings: Any) -> None:
        super().optimizer_step(*args, **settings)
        release_codes(self.student)

    def on_validation_start(self) -> None:
        self.check_losses()
        hold_codes(self.student)

    def on_validation_end(self) -> None:
        release_codes(self.student)

    def on_validation_epoch_end(self) -> None:
        # A fit may validate the first dev sets only.
        loaders = self.trainer.val_dataloaders
        seen = len(loaders) if isinstance(loaders, list) else 1
        for position, name in enumerate(self.dev_names[:seen]):
            values = {"loss": self.dev_losses[position].compute()}
            self.dev_losses[position].reset()
            if self.metrics is not None:
                values |= self.metrics[position].compute()
                if hasattr(self.metrics[position], "row_scores"):
                    self.row_scores[name] = self.metrics[position].row_scores()
                self.metrics[position].reset()
            self.log_dict({f"{name}/{key}": torch.as_tensor(value).float() for key, value in values.items()})
            if position == 0:
                plain = {key: float(value) for key, value in values.items()}
                score = self._score(plain) if self._score and self.metrics is not None else -plain["loss"]
                self.log(SCORE, torch.tensor(score, dtype=torch.float32), prog_bar=True)

    def on_fit_start(self) -> None:
        # Loaded models come in eval mode, and Lightning leaves modes as they are: dropout would stay off.
        self.student.train()

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        if isinstance(optimizer, BertAdam) and gradient_clip_algorithm != "value":
            if gradient_clip_val:
                clip_each_(self.parameters(), gradient_clip_val)
            return
        # Lightning's mixed precision refuses to clip for a fused optimizer, because that would divide by FP16's scale after
        # the clipping; bf16 has no scale.
        if self._scales_gradients or not gradient_clip_val:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(self.parameters(), gradient_clip_val)
        else:
            nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    @property
    def _scales_gradients(self) -> bool:
        """Whether FP16's scaler is used."""
        return self._trainer is not None and getattr(self.trainer.precision_plugin, "scaler", None) is not None

    def _allows_fused(self, parameters: list[nn.Parameter]) -> bool:
        """Whether the optimizer can update all parameters in one pass: FP16's gradient scaler does not allow it with
        clipping, and other devices than these have no such kernel.
        """
        return not self._scales_gradients and all(
            p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters
        )

    def configure_optimizers(self) -> Any:
        refuse_packed(self.student, "trained")
        decayed: list[nn.Parameter] = []
        plain: list[nn.Parameter] = []
        scales: list[nn.Parameter] = []
        for module in self.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if not parameter.requires_grad:
                    continue
                if isinstance(module, InputQuantizer) or name in SCALE_NAMES:
                    scales.append(parameter)
                else:
                    free = isinstance(module, nn.LayerNorm) or name == "bias"
                    (plain if free else decayed).append(parameter)
        groups: list[dict[str, Any]] = [
            {"params": decayed, "weight_decay": self.optim.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        if scales:
            groups.append({"params": scales, "weight_decay": 0.0, "lr": self.optim.scales_lr})
        optimizer: torch.optim.Optimizer
        if self.optim.optimizer == "bert_adam":
            optimizer = BertAdam(groups, lr=self.optim.lr)
        else:
            # fused=None: as few passes as the device has kernels for
            optimizer = torch.optim.AdamW(
                groups, lr=self.optim.lr, fused=self._allows_fused([*decayed, *plain, *scales]) or None
            )
        names = {"linear": "linear", "constant": "constant_with_warmup"}
        steps = int(self.trainer.estimated_stepping_batches) if self.total_steps is None else self.total_steps
        scheduler = get_scheduler(
            names[self.optim.schedule],
            optimizer,
            num_warmup_steps=round(steps * self.optim.warmup_ratio),
            num_training_steps=steps,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
