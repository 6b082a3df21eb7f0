"""Checks of the bits and scales of stages along a graph, weight splitting most of all. InputError if something is wrong."""

import json

from bitkd.config.schema import StageSpec
from bitkd.errors import InputError
from bitkd.quant.table import HALF_BITS, LEVELS, TERNARY
from bitkd.stages.kinds import Kind

KEPT_BY_A_SPLIT = ("per_row", "column_scales", "activation_bits", "attention_activations", "pooler")
"""Settings of precision in which a split and its ternary student agree, beside the word embeddings."""


def check_precision(name: str, stage: StageSpec, kind: Kind, stages: dict[str, StageSpec], split: set[str]) -> None:
    """Check that a stage's precision follows its student's.

    split: names of the stages before it whose students are split; the stage is added if its own is.
    """
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
    if found.learned_scales or found.levels != LEVELS[0]:
        raise InputError(
            f"stages.{stage.student}.quant: {name} splits its student, and only ternary weights with computed scales can be "
            "split; use learned_scales=false and levels=3"
        )
    pairs = {key: (getattr(wanted, key), getattr(found, key)) for key in KEPT_BY_A_SPLIT}
    pairs["embedding_bits"] = (wanted.resolved_embedding_bits, HALF_BITS if words == TERNARY else words)
    for key, (own, others) in pairs.items():
        if own != others:
            raise InputError(
                f"stages.{name}.quant.{key}={json.dumps(own)}, but what its student {stage.student} is split into has "
                f"{json.dumps(others)}: a split changes nothing else; use the same, and another in the stage behind it"
            )
