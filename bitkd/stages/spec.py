"""Settings of a stage's training and of its loss. It imports no torch."""

import math
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Any, Literal

from bitkd.errors import InputError, check_choices, nearest

SCORE = "dev/score"
"""Name of the task's primary metric on its first dev set; larger is better. Checkpoints are selected by it, and it is
the result of a run."""


@dataclass(frozen=True)
class Term:
    """One term of the distillation objective: a row of TERMS."""

    function: str
    """`package.module:function`, imported when a stage is built. It is called with the DistillationModule, the outputs of
    the student and of the teacher, and the batch, and gives a scalar that `loss.*` weighs (see bitkd.stages.terms)."""

    reads_head: bool = False
    """Whether it reads the logits: the head is then trained, else it is frozen."""

    reads_layers: bool = False
    """Whether it reads hidden states or attention scores: the models then return them."""

    reads_scores: Literal["all", "mapped", "none"] = "all"
    """Of a term that reads layers, which attention scores: `all`, `mapped`: those that the module's `map` compares, or
    `none`. Others are not computed."""

    reads_outputs: bool = False
    """Whether it reads the output of attention blocks (`attention_outputs`, see bitkd.models.layer_reader)."""

    projects: bool = False
    """Whether it compares tensors of the models' hidden sizes: where these differ, a stage learns a projection (`project` of
    the module) from the student's to the teacher's."""

    reads_last_layer: bool = True
    """Whether it reads what the last layer puts out. If no term of a stage does, that layer's parameters get no gradient,
    and DDP has to look for them."""

    needs_only_logits: bool = False
    """Whether the teacher's logits are all that it reads of the teacher. If this holds for every term of a stage, the
    teacher's logits may be kept (`trainer.keep_teacher_logits`); the teacher's outputs then have nothing else."""


def resolve(place: str, owner: str) -> Any:
    """What a row of a table names as `package.module:name`; InputError if it cannot be imported.

    owner: whose row it is, for the message.
    """
    try:
        return resolve_name(place)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"{owner} names {place}, which cannot be imported ({error}); write package.module:name"
        ) from error


LOGITS, HIDDEN, ATTENTION = "logits", "hidden", "attention"
ATTENTION_MAP, ATTENTION_OUTPUT = "attention_map", "attention_output"

TERMS: dict[str, Term] = {
    LOGITS: Term("bitkd.stages.terms:logits_term", reads_head=True, needs_only_logits=True),
    HIDDEN: Term("bitkd.stages.terms:hidden_term", reads_layers=True, reads_scores="none", projects=True),
    ATTENTION: Term(
        "bitkd.stages.terms:attention_term", reads_layers=True, reads_scores="mapped", reads_last_layer=False
    ),
    ATTENTION_MAP: Term(
        "bitkd.stages.terms:attention_map_term", reads_layers=True, reads_scores="mapped", reads_last_layer=False
    ),
    ATTENTION_OUTPUT: Term(
        "bitkd.stages.terms:attention_output_term",
        reads_layers=True,
        reads_scores="none",
        reads_outputs=True,
        projects=True,
        reads_last_layer=False,
    ),
}
"""The loss terms by name. Those that are not a field of LossSpec get their weight from `loss.extra`."""


@dataclass
class OptimSpec:
    """How one stage's student is trained."""

    lr: float = 5e-5
    """Peak learning rate."""

    optimizer: Literal["adamw", "bert_adam"] = "adamw"
    """`adamw`, or `bert_adam`: Adam without bias correction and with eps 1e-6, as in TinyBERT's, TernaryBERT's and BinaryBERT's
    code. Its first steps are several times as large, and `gradient_clip` then holds for each tensor and not for all together."""

    warmup_ratio: float = 0.1
    """Share of all optimizer steps spent in linear warm-up."""

    schedule: Literal["linear", "constant"] = "linear"
    """After warm-up: `linear` decay to zero, or `constant`."""

    weight_decay: float = 0.01
    """Decay of weight matrices; biases, LayerNorm and what quantizers learn have none."""

    scales_lr: float = 1e-4
    """Peak learning rate of what quantizers learn: steps and shifts of activations of 1, 2 and 4 bits, and learned scales of
    weights. It follows the schedule of `lr`."""

    def __post_init__(self) -> None:
        check_choices(self)


@dataclass
class LossSpec:
    """The distillation objective: which terms count how much, and how they are normalized."""

    logits: float = 1.0
    """Weight of the soft cross entropy (regression: squared error) on the teacher's logits."""

    hidden: float = 1.0
    """Weight of the hidden-state MSE, summed over layers."""

    attention: float = 1.0
    """Weight of the pre-softmax attention-score MSE, summed over layers."""

    temperature: float = 1.0
    """Softens both distributions of the logits term."""

    mean_over_classes: bool = False
    """Divide the soft cross entropy by the number of classes, as all the published code does, which weighs it less against the
    other terms."""

    padding: Literal["skip", "zero", "leave"] = "skip"
    """What the hidden, attention and attention_output terms do with padding: `skip` it, so that it changes nothing; or take the
    mean over all positions as published code does, with the scores of padded keys counted as `zero` (TinyBERT, TernaryBERT,
    BinaryBERT) or left as they are (`leave`: XTC). The others than `skip` need data.pad_to_max_length=true."""

    unmatched_heads: Literal["relation", "group_mean"] = "relation"
    """Heads without a source in the teacher: `relation` compares query, key and value relations (MiniLMv2,
    arXiv:2012.15828); `group_mean` compares each with the mean of a group of teacher heads."""

    regression_target: Literal["teacher", "label"] = "teacher"
    """What a regression's logits term aims at: the `teacher`'s output, or the `label` (as TinyBERT does)."""

    extra: dict[str, float] = field(default_factory=dict)
    """Weights of terms without a setting of their own, by their names: `attention_map` and
    `attention_output` (arXiv:2211.11014), and those of your own. A KD stage of any kind adds them to its own terms; those that
    its kind names have weight 1 unless given here."""

    intervention: Literal["map", "output", "gradual"] | None = None
    """Teacher intervention (arXiv:2302.11812): at the first step the teacher's tensor takes the place of the student's, and is
    withdrawn step by step. `map`: the attention map of each layer; `output`: the output of the Linear behind attention;
    `gradual`: the output first, then the map. Validation uses the student alone."""

    intervention_share: float = 0.25
    """Share of the stage's optimizer steps over which the teacher is withdrawn."""

    def __post_init__(self) -> None:
        check_choices(self, "loss.")
        if unknown := [name for name in self.extra if name not in TERMS]:
            raise InputError(f"loss.extra.{unknown[0]} is no loss term; {nearest(unknown[0], TERMS)}")
        if own := [name for name in self.extra if name in LossSpec.__dataclass_fields__]:
            raise InputError(f"loss.extra.{own[0]}={self.extra[own[0]]} already has a setting; use loss.{own[0]}")
        for name, weight in self.weights.items():
            if not 0 <= weight < math.inf:
                where = f"extra.{name}" if name in self.extra else name
                raise InputError(f"loss.{where}={weight} is no weight; use 0 or a positive number")
        if not 0 < self.intervention_share <= 1:
            raise InputError(
                f"loss.intervention_share={self.intervention_share} is no share of the steps; use more than 0 and at most 1"
            )
        if not 0 < self.temperature < math.inf:
            raise InputError(f"loss.temperature={self.temperature} is unsupported; use a positive number")

    @property
    def weights(self) -> dict[str, float]:
        """The weight of every term that has one, by name."""
        return {name: self.weight_of(name) for name in TERMS}

    def weight_of(self, term: str) -> float:
        """The weight of a term; 1 if it has no setting of its own and `extra` does not name it."""
        own = term in LossSpec.__dataclass_fields__
        return getattr(self, term) if own else self.extra.get(term, 1.0)
