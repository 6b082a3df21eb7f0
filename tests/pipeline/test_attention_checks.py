"""Students and teachers whose attention cannot be compared or exchanged are refused before a run starts."""

import pytest

from bitkd.config.load import load_config
from bitkd.errors import InputError
from bitkd.pipeline.plan import make_plan

RANDOM = ["student.init=random", "student.width=1"]
MAP, OUTPUT = "stages.stage1.loss.extra.attention_map=1", "stages.stage1.loss.extra.attention_output=1"
OTHERWISE = "stages.stage1.loss.unmatched_heads=group_mean"


@pytest.fixture
def plan(settings, tmp_path):
    return lambda *changes: make_plan(load_config(settings(tmp_path, "multistage", *changes)))


@pytest.mark.parametrize("intervention", ["map", "gradual"])
def test_heads_without_a_source(plan, intervention):
    fewer = [*RANDOM, "student.heads=2"]
    with pytest.raises(
        InputError, match=r"stages.stage1: loss.extra.attention_map compares attention maps head by head"
    ):
        plan(*fewer, MAP)
    with pytest.raises(InputError, match=rf"stages.ternary: loss.intervention={intervention} puts attention maps"):
        plan(*fewer, MAP, OTHERWISE, f"stages.ternary.loss.intervention={intervention}")
    plan(*fewer, MAP, OTHERWISE, OUTPUT, "stages.ternary.loss.intervention=output")
    plan(*RANDOM, MAP, f"stages.ternary.loss.intervention={intervention}")
    plan("student.width=0.5", MAP, f"stages.ternary.loss.intervention={intervention}")  # a copy of the teacher's heads


def test_widths_that_differ(plan):
    narrow = [*RANDOM, "student.hidden_size=16", "student.heads=4"]
    with pytest.raises(InputError, match=r"stages.ternary: .*hidden sizes differ \(16 and 32\); use map, or null"):
        plan(*narrow, "stages.ternary.loss.intervention=output")
    plan(*narrow, MAP, OUTPUT, "stages.ternary.loss.intervention=map")


def test_a_stage_without_a_teacher(plan):
    with pytest.raises(InputError, match=r"stages.teacher.loss.intervention=map: a finetune stage has no teacher"):
        plan("stages.teacher.loss.intervention=map")
