"""The distillation objective that every KD stage chooses its terms from."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bitkd.distill.layer_map import group_mean_heads
from bitkd.distill.losses import attention_score_mse, hidden_mse, logits_mse, relation_kl, soft_cross_entropy
from bitkd.errors import InputError
from bitkd.models.encoder import encoder_layers, read_spec
from bitkd.models.projections import ProjectionRecorder
from bitkd.models.teacher_map import map_student
from bitkd.stages.base import StudentModule
from bitkd.stages.spec import LossSpec


class DistillationModule(StudentModule):
    """A student taught by a frozen teacher; `terms` names what a stage compares.

    The teacher stays in eval mode, without gradients and out of checkpoints: it is no submodule.
    """

    terms: tuple[str, ...] = ("logits", "hidden", "attention")

    def __init__(
        self, student: PreTrainedModel, teacher: PreTrainedModel, loss: LossSpec | None = None, **settings: Any
    ) -> None:
        super().__init__(student, **settings)
        self.loss = loss or LossSpec()
        self.weights = {term: getattr(self.loss, term) for term in self.terms if getattr(self.loss, term) > 0}
        if not self.weights:
            raise InputError(f"{type(self).__name__} has no loss term left; give one of {self.terms} a positive weight")
        # A plain list hides the teacher from nn.Module: no checkpoint, optimizer or DDP wrapper sees it.
        self._teacher = [teacher.eval().requires_grad_(False)]
        self._map = map_student(
            read_spec(student), len(encoder_layers(student)), read_spec(teacher), len(encoder_layers(teacher))
        )
        self.project = self._projection(student, teacher)
        self._recorders = self._record_projections(student, teacher)
        if "logits" not in self.weights:
            self._freeze_head()

    @property
    def teacher(self) -> Any:
        return self._teacher[0]

    def _projection(self, student: PreTrainedModel, teacher: PreTrainedModel) -> nn.Linear | None:
        """One linear map, shared by all layers, from the student's width to the teacher's (TinyBERT)."""
        widths = student.config.hidden_size, teacher.config.hidden_size
        return nn.Linear(*widths, bias=False) if "hidden" in self.weights and widths[0] != widths[1] else None

    def _record_projections(self, student: PreTrainedModel, teacher: PreTrainedModel) -> list[ProjectionRecorder]:
        relations = self._map.heads is None and self.loss.unmatched_heads == "relation" and "attention" in self.weights
        return [ProjectionRecorder(student), ProjectionRecorder(teacher)] if relations else []

    def _freeze_head(self) -> None:
        """Parameters that no term reads would make DDP fail and weight decay shrink them: they keep still."""
        model = self.student
        heads = [getattr(model, "classifier", None), getattr(model.base_model, "pooler", None)]
        for module in heads:
            if module is not None:
                module.requires_grad_(False)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.teacher.to(self.device)

    def on_validation_start(self) -> None:
        self.teacher.to(self.device)

    def loss_terms(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        inputs, mask = self.inputs(batch), batch["attention_mask"].bool()
        inside = "hidden" in self.weights or "attention" in self.weights
        with torch.no_grad():
            target = self.teacher(**inputs, output_hidden_states=inside, output_attentions=inside)
        output = self.student(**inputs, output_hidden_states=inside, output_attentions=inside)
        terms = {}
        if "logits" in self.weights:
            terms["logits"] = self._logits_term(output.logits, target.logits, batch)
        if "hidden" in self.weights:
            terms["hidden"] = self._hidden_term(output.hidden_states, target.hidden_states, mask)
        if "attention" in self.weights:
            terms["attention"] = self._attention_term(output.attentions, target.attentions, mask)
        return {name: self.weights[name] * term for name, term in terms.items()}

    def _logits_term(self, student: Tensor, teacher: Tensor, batch: dict[str, Tensor]) -> Tensor:
        if student.shape[1] > 1:
            return soft_cross_entropy(student, teacher, self.loss.temperature)
        if self.loss.regression_target == "label":
            teacher = batch["labels"].unsqueeze(1)
        return logits_mse(student, teacher)

    def _hidden_term(self, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], mask: Tensor) -> Tensor:
        project = self.project or nn.Identity()
        pairs = [(project(student[j]), teacher[t]) for j, t in enumerate(self._map.hidden)]
        return torch.stack([hidden_mse(s, t, mask, self.loss.include_padding) for s, t in pairs]).sum()

    def _attention_term(self, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], mask: Tensor) -> Tensor:
        if self._recorders:
            return self._relation_term(mask)
        losses = []
        for i, t in enumerate(self._map.attention):
            if self._map.heads is None:
                source = group_mean_heads(teacher[t], student[i].shape[1])
            else:
                source = teacher[t][:, self._map.heads[i]]
            losses.append(attention_score_mse(student[i], source, mask, self.loss.include_padding))
        return torch.stack(losses).sum()

    def _relation_term(self, mask: Tensor) -> Tensor:
        student, teacher = (recorder.projections for recorder in self._recorders)
        heads = math.gcd(read_spec(self.teacher).heads, student[0][0].shape[-1], teacher[0][0].shape[-1])
        return torch.stack(
            [
                torch.stack([relation_kl(s, q, mask, heads) for s, q in zip(student[i], teacher[t])]).mean()
                for i, t in enumerate(self._map.attention)
            ]
        ).sum()
