"""Colours and words for stages."""

import pytest

from bitkd.quant.table import weight_bits_of
from bitkd.report.looks import in_order, look_of
from bitkd.report.mermaid import draw_graph
from bitkd.stages.kinds import KINDS


@pytest.mark.parametrize("bits", [3, 4, 5, 6, 7, 8, 16])
def test_a_width_without_a_colour_of_its_own_is_not_shown_as_another(bits):
    look = look_of(KINDS["single_stage"], bits)
    others = [look_of(KINDS["single_stage"], other) for other in (1, 2, 32)]
    assert look.label == f"{bits}-bit"
    assert look.colour not in {other.colour for other in others}
    assert look.label not in {other.label for other in others}
    stage = {"name": "one", "title": "One", "kind": "single_stage", "inputs": {}, "bits": bits}
    assert f"fill:{look.colour}" in draw_graph([stage])


def test_a_legend_goes_from_the_teacher_over_wide_to_narrow_weights():
    kinds = [("augment", 32), ("single_stage", 1), ("split", 1), ("single_stage", 2), ("single_stage", 4)]
    kinds += [("init", 32), ("general", 32), ("finetune", 32), ("single_stage", 1)]
    assert [look.label for look in in_order(look_of(KINDS[name], bits) for name, bits in kinds)] == [
        "teacher",
        "task-agnostic FP32",
        "task-specific FP32",
        "4-bit",
        "2-bit",
        "splitting",
        "1-bit",
        "rows",
    ]


def test_a_fine_tuned_stage_of_the_chain_is_a_student():
    assert look_of(KINDS["finetune"], 32).label == "teacher"
    assert look_of(KINDS["finetune"], 32, in_chain=True).label == "task-specific FP32"


def test_bits_are_those_of_the_weights():
    assert [weight_bits_of(text) for text in ("W1A8", "W4A32", "W32A32", "")] == [1, 4, 32, 32]
