"""How a stage is trained and what it minimizes, as it stands in a configuration. It needs no torch."""

import math
from dataclasses import dataclass

from bitkd.errors import InputError


@dataclass
class OptimSpec:
    """How one stage's student is trained."""

    lr: float = 5e-5
    """Peak learning rate."""

    warmup_ratio: float = 0.1
    """Share of all optimizer steps spent in linear warm-up."""

    schedule: str = "linear"
    """After warm-up: `linear` decay to zero, or `constant`."""

    weight_decay: float = 0.01
    """AdamW's decay of weight matrices; biases and LayerNorm have none."""


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

    include_padding: bool = False
    """True: average over padding too, as the published code does; results then depend on batch composition."""

    unmatched_heads: str = "relation"
    """Heads without a source in the teacher: `relation` compares query, key and value relations (MiniLMv2,
    arXiv:2012.15828); `group_mean` compares each with the mean of a group of teacher heads."""

    regression_target: str = "teacher"
    """What a regression's logits term aims at: the `teacher`'s output, or the `label` (as TinyBERT does)."""

    def __post_init__(self) -> None:
        for term in ("logits", "hidden", "attention"):
            weight = getattr(self, term)
            if not 0 <= weight < math.inf:
                raise InputError(f"loss.{term}={weight} is no weight; use 0 or a positive number")
        if not 0 < self.temperature < math.inf:
            raise InputError(f"loss.temperature={self.temperature} is unsupported; use a positive number")
        for name, allowed in (
            ("unmatched_heads", ("relation", "group_mean")),
            ("regression_target", ("teacher", "label")),
        ):
            if getattr(self, name) not in allowed:
                raise InputError(f"loss.{name}={getattr(self, name)} is unknown; use {' or '.join(allowed)}")
