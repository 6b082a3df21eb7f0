"""SubLN, tried as a kind of stage of the study's own: `python -m experiments.quantizers.subln` is bitkd with it.

BitNet normalizes the input of each output projection (arXiv:2310.11453), BitDistill puts such norms into a trained model
(arXiv:2510.13998). Here too, the input of each layer's attention output projection and second FFN matrix gets a root mean
square of 1. The norms have no weights: the matrix behind one takes their place, in 1 bit by its scales of columns. So an
artifact holds no tensors of theirs, and must not be exported: a packed student would leave the norms out.
"""

import sys
from typing import Any

from torch import Tensor, nn

from bitkd.cli import main
from bitkd.quant.layout import layers_of
from bitkd.stages.base import Origin
from bitkd.stages.distillation import DistillationModule
from bitkd.stages.kinds import KINDS, Kind

NAME = "single_stage_subln"


def normalize_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A forward pre-hook: the first input, (..., features), over the root mean square of its features."""
    x, *others = inputs
    return nn.functional.rms_norm(x, x.shape[-1:], eps=1e-6), *others


class SingleStageSubLN(DistillationModule):
    """Single-Stage KD of a student with SubLN."""

    kind = NAME

    @classmethod
    def start(cls, origin: Origin) -> Any:
        student = super().start(origin)
        layers = layers_of(student)
        for linear in (*layers.parts("attention_output"), *layers.parts("down")):
            linear.register_forward_pre_hook(normalize_input)
        return student


KIND = Kind(NAME, "experiments.quantizers.subln:SingleStageSubLN", terms=("logits", "hidden", "attention"), trains=True)


def register() -> None:
    """Let pipelines and records name this kind."""
    KINDS[NAME] = KIND


if __name__ == "__main__":
    register()
    sys.exit(main())
