"""The distillation objective that every KD stage chooses its terms from."""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from bitkd.distill.layer_map import HeadSelection
from bitkd.errors import InputError
from bitkd.models.attention import SELECTED, can_use_score_attention, use_score_attention
from bitkd.models.encoder import encoder_layers, read_spec
from bitkd.models.heads import BARE, head_of
from bitkd.models.inputs import model_inputs
from bitkd.models.layer_reader import LayerReader, Parts
from bitkd.models.prepare import prepare
from bitkd.models.projections import ProjectionRecorder
from bitkd.models.student import add_head, as_embedder
from bitkd.models.teacher_map import map_student
from bitkd.quant.layout import layers_of
from bitkd.stages.base import Origin, StudentModule
from bitkd.stages.fit import check_fit
from bitkd.stages.intervention import Intervention
from bitkd.stages.kinds import kind_of
from bitkd.stages.spec import ATTENTION, TERMS, LossSpec, resolve


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
        self._reads_outputs = any(TERMS[name].reads_outputs for name in self.weights)
        for model in (student, teacher):
            if self._reads_layers or self.loss.intervention or can_use_score_attention(model):
                use_score_attention(model)
        # A plain list hides the teacher from nn.Module: no checkpoint, optimizer or DDP wrapper sees it.
        self._teacher = [teacher.eval().requires_grad_(False)]
        self.map = map_student(
            read_spec(student), len(encoder_layers(student)), read_spec(teacher), len(encoder_layers(teacher))
        )
        widths = student.config.hidden_size, teacher.config.hidden_size
        check_fit(self.loss, self.weights, self.map.heads is not None, *widths)
        self.intervention = Intervention(self.loss) if self.loss.intervention else None
        self.project = self._projection(student, teacher)
        self.windows = [getattr(module, "sliding_window", None) for module in layers_of(student).parts("attention")]
        self.teacher_heads = read_spec(teacher).heads
        self.recorders = self._record_projections(student, teacher)
        self.select_heads = HeadSelection(self.map.heads or [])
        self._scores = self._select_scores()
        self._readers = LayerReader(student), LayerReader(teacher)
        if not kind.trains_head(self.loss):
            self._freeze_head()
        numbers = self.head.is_number(student.config)
        self.reads_teacher = kind.reads_teacher(self.loss, numbers)
        own = type(self).loss_terms is not DistillationModule.loss_terms
        self.can_keep_logits = self.head.can_keep_logits and kind.reads_only_logits(self.loss, numbers) and not own
        # It is no buffer: a checkpoint must not hold it.
        self._kept_logits: Tensor | None = None

    @classmethod
    def start(cls, origin: Origin) -> PreTrainedModel:
        """The student of the stage before, with the teacher's head if it has none."""
        student = origin.load()
        if origin.teacher is not None and BARE is head_of(student) is not head_of(origin.teacher):
            student = add_head(student, origin.teacher)
        elif origin.teacher is not None and origin.head is BARE:
            student = as_embedder(student, origin.teacher)
        return prepare(student, origin.quant)

    @property
    def teacher(self) -> Any:
        return self._teacher[0]

    def code(self) -> Iterator[Any]:
        yield from super().code()
        yield from self.teacher.modules()
        yield from self._terms.values()

    def keep_logits(self, logits: Tensor) -> None:
        """Train on these logits of the teacher, so that no training step runs it. Validation still runs it.

        logits: (rows, outputs); row i belongs to the training row whose `index` in the batch is i.
        Raises InputError if a term reads the teacher's hidden states or attention, or no term reads the teacher.
        """
        if not self.can_keep_logits:
            raise InputError(
                f"{type(self).__name__} with the terms {', '.join(self.weights)} does not train on the teacher's logits alone; "
                "let it run the teacher"
            )
        self._kept_logits = logits.to(self.device)

    @property
    def runs_teacher(self) -> bool:
        """Whether `loss_terms` runs the teacher: not where no term reads it, nor in training on kept logits."""
        return self.reads_teacher and not (self.training and self._kept_logits is not None)

    def _projection(self, student: PreTrainedModel, teacher: PreTrainedModel) -> nn.Linear | None:
        """One linear map, shared by all layers, from the student's width to the teacher's (TinyBERT)."""
        widths = student.config.hidden_size, teacher.config.hidden_size
        projects = any(TERMS[name].projects for name in self.weights)
        return nn.Linear(*widths, bias=False) if projects and widths[0] != widths[1] else None

    def _record_projections(self, student: PreTrainedModel, teacher: PreTrainedModel) -> list[ProjectionRecorder]:
        relations = self.map.heads is None and self.loss.unmatched_heads == "relation" and ATTENTION in self.weights
        return [ProjectionRecorder(student), ProjectionRecorder(teacher)] if relations else []

    def _select_scores(self) -> tuple[bool, bool | str]:
        """Which attention scores the terms read, as `output_attentions` of the student and of the teacher."""
        read = {TERMS[name].reads_scores for name in self.weights if TERMS[name].reads_layers}
        if "all" in read:
            return True, True
        compared = "mapped" in read and not self.recorders
        if not compared and (self.intervention is None or not self.intervention.replaces("map")):
            return False, False
        use_score_attention(self.teacher, self.map.attention)
        return compared, SELECTED

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
        if self._kept_logits is not None:
            self._kept_logits = self._kept_logits.to(self.device)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        if self.intervention is not None:
            steps = self.trainer.estimated_stepping_batches if self.total_steps is None else self.total_steps
            self.intervention.set_step(self.global_step, int(steps))

    def on_validation_start(self) -> None:
        super().on_validation_start()
        self.teacher.to(self.device)

    def loss_terms(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weighted terms of the training loss by name, each a scalar.

        batch: input_ids, attention_mask and what else the models read, each (batch, length); labels (batch,) for a
        regression that aims at them; index (batch,) for kept logits.
        """
        # The models and the terms read the mask as truth values.
        batch = batch | {"attention_mask": batch["attention_mask"].bool()}
        target = self.ask_teacher(batch)
        mixture = None
        if self.intervention is not None and self.training:
            mixture = self.intervention.mixture(self.map, self.select_heads, target)
        parts = Parts(self._reads_layers, self._scores[0], self._reads_outputs)
        output = self._readers[0].run(parts, mixture, **model_inputs(batch, self.student))
        terms = {name: term(self, output, target, batch) for name, term in self._terms.items()}
        for name, value in terms.items():
            if value.dim():
                raise InputError(f"loss term {name} gives shape {tuple(value.shape)}; it must give a scalar")
        return {name: self.weights[name] * value for name, value in terms.items()}

    def ask_teacher(self, batch: dict[str, Tensor]) -> Any:
        """The teacher's outputs on a batch; only its logits, if they are kept; None if no term reads them."""
        if self.runs_teacher:
            projected = self.intervention is not None and self.intervention.replaces("output")
            parts = Parts(self._reads_layers, self._scores[1], self._reads_outputs, projected)
            with torch.no_grad():
                return self._readers[1].run(parts, None, **model_inputs(batch, self.teacher))
        if self._kept_logits is None:
            return None
        return SequenceClassifierOutput(logits=self._kept_logits[batch["index"]])
