"""Checks of the bits and scales of stages along a graph, weight splitting most of all. InputError if something is wrong."""

import json

from bitkd.config.schema import StageSpec
from bitkd.errors import InputError
from bitkd.quant.table import FP32, HALF_BITS, LEVELS, TERNARY
from bitkd.stages.kinds import Kind

KEPT_BY_A_SPLIT = ("per_row", "column_scales", "activation_bits", "attention_activations", "pooler")
"""Settings of precision in which a split and its ternary student agree, beside the word embeddings."""

NEEDED_BITS = {"per_row": "weight_bits", "attention_activations": "activation_bits"}
"""A setting -> the bits without which it has no effect. Those of QuantSpec's own checks are not among them."""


def check_precision(name: str, stage: StageSpec, kind: Kind, stages: dict[str, StageSpec], split: set[str]) -> None:
    """Check that a stage's settings of precision have an effect, and that they follow its student's.

    split: names of the stages before it whose students are split; the stage is added if its own is.
    """
    for key, bits in NEEDED_BITS.items():
        if getattr(stage.quant, key) and getattr(stage.quant, bits) == FP32:
            raise InputError(
                f"stages.{name}.quant.{key}=true with {bits}={FP32} changes nothing; set stages.{name}.quant.{bits}, or leave "
                f"{key} out"
            )
    if kind.reshapes and stage.student in split:
        raise InputError(
            f"stages.{name}.student={stage.student} is split and cannot be reshaped again; reshape it before splitting"
        )
    if kind.splits:
        if stage.quant.embedding_bits == 2:
            raise InputError(
                f"stages.{name}.quant.embedding_bits=2: splitting makes binary embeddings of ternary ones; use 1, or 32"
            )
        student = stages.get(stage.student, stage)
        if stage.student in split:
            raise InputError(f"stages.{name}.student={stage.student} is split already; split a 2-bit student")
        if stage.quant.weight_bits != 1:
            raise InputError(
                f"stages.{name}.quant.weight_bits={stage.quant.weight_bits}: a split student is binary; use 1"
            )
        if student.quant.weight_bits == TERNARY:
            _check_split(name, stage, student)
        if stage.quant.learned_scales:
            raise InputError(
                f"stages.{name}.quant.learned_scales=true: a split computes the scales of its halves; set it in the stages behind"
            )
        split.add(name)
    elif stage.student in split:
        if stage.quant.weight_bits != 1:
            raise InputError(
                f"stages.{name}.quant.weight_bits={stage.quant.weight_bits}, but its student {stage.student} is split into "
                "binary halves; use 1"
            )
        split.add(name)


def _check_split(name: str, stage: StageSpec, student: StageSpec) -> None:
    """Check that a split takes its ternary student as it is: the student stays what it computes."""
    wanted, found = stage.quant, student.quant
    words = found.resolved_embedding_bits
    if words == HALF_BITS:
        raise InputError(
            f"stages.{name}: the word embeddings of its student {stage.student} are {words}-bit and cannot "
            "be split; use embedding_bits=32, or null for the weights' bits"
        )
    for key, value in (("learned_scales", False), ("levels", LEVELS[0])):
        if getattr(found, key) != value:
            raise InputError(
                f"stages.{stage.student}.quant.{key}={json.dumps(getattr(found, key))}, but {name} splits that student, and only "
                f"ternary weights with computed scales can be split; use {key}={json.dumps(value)}"
            )
    pairs = {key: (getattr(wanted, key), getattr(found, key)) for key in KEPT_BY_A_SPLIT}
    pairs["embedding_bits"] = (wanted.resolved_embedding_bits, HALF_BITS if words == TERNARY else words)
    for key, (own, others) in pairs.items():
        if own != others:
            raise InputError(
                f"stages.{name}.quant.{key}={json.dumps(own)}, but the halves of its student {stage.student} have {key}="
                f"{json.dumps(others)}, which a split does not change; set stages.{name}.quant.{key}={json.dumps(others)} "
                f"(stages behind {name} may have another value)"
            )
