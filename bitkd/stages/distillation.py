"""The distillation objective that every KD stage chooses its terms from."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bitkd.errors import InputError
from bitkd.models.attention import use_score_attention
from bitkd.models.encoder import encoder_layers, read_spec
from bitkd.models.inputs import model_inputs
from bitkd.models.prepare import prepare
from bitkd.models.projections import ProjectionRecorder
from bitkd.models.student import add_head
from bitkd.models.teacher_map import map_student
from bitkd.stages.base import Origin, StudentModule
from bitkd.stages.kinds import kind_of
from bitkd.stages.spec import ATTENTION, HIDDEN, TERMS, LossSpec, resolve


class DistillationModule(StudentModule):
    """A student taught by a frozen teacher.

    The teacher stays in eval mode, without gradients and out of checkpoints: it is no submodule.

    loss: weights of the terms, and how they are normalized.  settings: see StudentModule.
    Raises InputError if no term has a positive weight.
    """

    kind: ClassVar[str]
    """Name of the row of bitkd.stages.kinds that says which terms this stage compares."""

    def __init__(
        self, student: PreTrainedModel, teacher: PreTrainedModel, loss: LossSpec | None = None, **settings: Any
    ) -> None:
        super().__init__(student, **settings)
        self.loss = loss or LossSpec()
        kind = kind_of(self.kind)
        self.weights = {name: self.loss.weight_of(name) for name in kind.active_terms(self.loss)}
        if not self.weights:
            raise InputError(f"{type(self).__name__} has no loss term left; give one of {kind.terms} a positive weight")
        self._terms: dict[str, Callable[..., Tensor]] = {
            name: resolve(TERMS[name].function, f"loss term {name}") for name in self.weights
        }
        self._reads_layers = any(TERMS[name].reads_layers for name in self.weights)
        if self._reads_layers:
            for model in (student, teacher):
                use_score_attention(model)
        # A plain list hides the teacher from nn.Module: no checkpoint, optimizer or DDP wrapper sees it.
        self._teacher = [teacher.eval().requires_grad_(False)]
        self.map = map_student(
            read_spec(student), len(encoder_layers(student)), read_spec(teacher), len(encoder_layers(teacher))
        )
        self.project = self._projection(student, teacher)
        self.teacher_heads = read_spec(teacher).heads
        self.recorders = self._record_projections(student, teacher)
        if not kind.trains_head(self.loss):
            self._freeze_head()

    @classmethod
    def start(cls, origin: Origin) -> PreTrainedModel:
        """The student of the stage before, with the teacher's head if it has none."""
        student = origin.load()
        if origin.teacher is not None and not hasattr(student, "classifier"):
            student = add_head(student, origin.teacher)
        return prepare(student, origin.quant)

    @property
    def teacher(self) -> Any:
        return self._teacher[0]

    def _projection(self, student: PreTrainedModel, teacher: PreTrainedModel) -> nn.Linear | None:
        """One linear map, shared by all layers, from the student's width to the teacher's (TinyBERT)."""
        widths = student.config.hidden_size, teacher.config.hidden_size
        return nn.Linear(*widths, bias=False) if HIDDEN in self.weights and widths[0] != widths[1] else None

    def _record_projections(self, student: PreTrainedModel, teacher: PreTrainedModel) -> list[ProjectionRecorder]:
        relations = self.map.heads is None and self.loss.unmatched_heads == "relation" and ATTENTION in self.weights
        return [ProjectionRecorder(student), ProjectionRecorder(teacher)] if relations else []

    def _freeze_head(self) -> None:
        """Parameters that no term reads would make DDP fail, and weight decay would shrink them."""
        bare = self.student.base_model
        heads = [module for module in self.student.children() if module is not bare] if bare is not self.student else []
        for module in (*heads, getattr(bare, "pooler", None)):
            if module is not None:
                module.requires_grad_(False)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.teacher.to(self.device)

    def on_validation_start(self) -> None:
        super().on_validation_start()
        self.teacher.to(self.device)

    def loss_terms(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weighted terms of the training loss by name, each a scalar.

        batch: input_ids, attention_mask and what else the models read, each (batch, length); labels (batch,) for a
        regression that aims at them.
        """
        layers = self._reads_layers
        with torch.no_grad():
            target = self.teacher(
                **model_inputs(batch, self.teacher), output_hidden_states=layers, output_attentions=layers
            )
        output = self.student(
            **model_inputs(batch, self.student), output_hidden_states=layers, output_attentions=layers
        )
        terms = {name: term(self, output, target, batch) for name, term in self._terms.items()}
        for name, value in terms.items():
            if value.dim():
                raise InputError(f"loss term {name} gives shape {tuple(value.shape)}; it must give a scalar")
        return {name: self.weights[name] * value for name, value in terms.items()}
