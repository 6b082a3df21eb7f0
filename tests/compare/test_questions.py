"""What a difference between two arms shows, as far as their records tell."""

from dataclasses import replace

import pytest

from bitkd.compare.arms import make_arms
from bitkd.compare.pairing import question
from tests.compare.synthetic import make_one

EQUAL = {  # at 960 steps, as the pipelines divide them
    "multistage": {
        "general": 192,
        "stage1": 96,
        "stage2": 96,
        "ternary": 192,
        "stage1_binary": 192,
        "stage2_binary": 192,
    },
    "halfternary": {"general": 192, "stage1": 96, "stage2": 96, "ternary": 576},
    "splitdirect": {"general": 192, "stage1": 96, "stage2": 96, "stage1_binary": 288, "stage2_binary": 288},
    "progressive": {"single": 384, "ternary": 192, "single_binary": 384},
    "singlestage": {"single": 384, "single_binary": 576},
}


def of(pipeline, settings=None, without=(), **steps):
    """A run of the pipeline without some of its stages, with these steps in place of those of EQUAL."""
    steps = EQUAL[pipeline] | steps
    run = make_one(pipeline, 1)
    stages = [replace(s, steps=steps.get(s.name, s.steps)) for s in run.stages if s.name not in without]
    width = 1.0 if pipeline in ("progressive", "singlestage") else 0.5
    return replace(run, settings={"student.width": width} | (settings or {}), stages=stages)


def asked(first, second):
    return question(*make_arms([replace(first, pipeline="first"), replace(second, pipeline="second")]))


def test_what_splitting_gives_is_asked_of_arms_that_differ_in_the_split_alone():
    split, unsplit = of("multistage"), of("multistage", without=("split",))
    assert asked(split, unsplit) == "what splitting gives"
    assert asked(unsplit, split) == "differs from second in: no splitting"
    assert asked(split, replace(unsplit, seed=2)) == "what splitting gives"
    assert asked(split, split) == ""


@pytest.mark.parametrize(
    ("first", "second", "shown"),
    [
        (
            "multistage",
            "halfternary",
            "splitting, final bits (W1A8 against W2A8), 384 of 576 low-bit steps (at W1A8, not W2A8)",
        ),
        ("multistage", "splitdirect", "192 of 576 low-bit steps (at W2A8, not W1A8)"),
        ("progressive", "singlestage", "192 of 576 low-bit steps (at W2A8, not W1A8)"),
        (
            "halfternary",
            "singlestage",
            "final bits (W2A8 against W1A8), General KD, no stage of kind init, FP32 steps (192 against 384), "
            "kinds of stages, student.width",
        ),
    ],
)
def test_pipelines_at_an_equal_budget_differ_in_their_steps_at_each_precision_too(first, second, shown):
    assert asked(of(first), of(second)) == f"differs from second in: {shown}"


@pytest.mark.parametrize(("more", "alone"), [(0, True), (3, True), (4, False), (-4, False)])
def test_steps_of_one_precision_alone_are_asked_for_if_those_of_the_others_are_equal_to_one_in_a_hundred(more, alone):
    found = asked(of("progressive"), of("singlestage", single_binary=384 + more))
    assert (found == "what W2A8 steps give") == alone
    assert ("W1A8" in found) == (not alone)


def test_other_steps_are_named_where_both_have_some():
    short = of("progressive", ternary=96)
    assert asked(of("progressive"), short) == "differs from second in: W2A8 steps (192 against 96)"
    assert asked(short, of("progressive", general=9, single=200)) == (
        "differs from second in: FP32 steps (384 against 200), W2A8 steps (96 against 192)"
    )


def test_final_bits_alone_are_asked_for_if_each_trains_at_its_own_for_as_long():
    binary, ternary = of("singlestage"), of("singlestage")
    at_two = [replace(s, precision="W2A8") if s.name == "single_binary" else s for s in ternary.stages]
    ternary = replace(
        ternary, stages=at_two, settings={"student.width": 1.0, "stages.single_binary.quant.weight_bits": 2}
    )
    binary = replace(binary, settings={"student.width": 1.0, "stages.single_binary.quant.weight_bits": 1})
    assert asked(ternary, binary) == "W2A8 against W1A8"
    assert "final bits" in asked(replace(ternary, settings={"student.width": 0.5}), binary)


def test_general_kd_alone():
    assert asked(of("multistage"), of("multistage", without=("general",))) == "what General KD gives"
    longer = of("multistage", general=400)
    assert asked(of("multistage"), longer) == "differs from second in: steps of General KD (192 against 400)"


def test_kinds_of_stages_and_how_they_divide_the_steps_count():
    halves = of("multistage")
    assert asked(halves, of("multistage", stage1_binary=96, stage2_binary=288)).endswith(
        "division of steps among stages"
    )
    kinds = [replace(s, kind="single_stage") if s.name == "stage1" else s for s in halves.stages]
    assert asked(halves, replace(halves, stages=kinds)) == "differs from second in: kinds of stages"


def test_one_setting_alone_is_named_with_its_values_and_many_are_cut():
    def with_settings(**settings):
        return of("multistage", settings)

    assert asked(with_settings(x=1), with_settings(x=None)) == "x: 1 against null"
    many = [with_settings(**{f"x{i}": value for i in range(6)}) for value in (1, 2)]
    assert asked(*many) == "differs from second in: x0, x1, x2, x3, …"
    longer = [of("multistage", {"stages.ternary.max_steps": steps}, ternary=steps) for steps in (192, 96)]
    assert asked(*longer) == "differs from second in: W2A8 steps (192 against 96)"  # once, though a setting says it too


def test_settings_of_stages_are_compared_with_their_counterparts_whatever_their_names():
    binary = [replace(s, name="binary") if s.name == "single_binary" else s for s in of("progressive").stages]

    def first(lr):
        settings = {"student.width": 1.0, "stages.binary.lr": lr, "stages.ternary.lr": 7}
        return replace(of("progressive"), stages=binary, settings=settings)

    other = of("singlestage", {"stages.single_binary.lr": 1}, single_binary=384)
    assert asked(first(1), other) == "what W2A8 steps give"
    assert asked(first(2), other) == "differs from second in: W2A8 steps (192 against 0), stages.binary.lr"


@pytest.mark.parametrize("other", [{}, {"stages.single_binary.lr": 2}])
def test_a_setting_that_only_one_of_two_runs_sets_is_named(other):
    """A run's record has the weights of further loss terms, and an activation function, only where they are set."""
    common = {"stages.single_binary.lr": 1}
    attention_map, act = "stages.single_binary.loss.extra.attention_map", "student.hidden_act"
    one, two = of("singlestage", common | {attention_map: 0.5, act: "relu"}), of("singlestage", common | other)
    lr = ["stages.single_binary.lr"] if other else []
    assert asked(one, two) == f"differs from second in: {', '.join([attention_map, act, *lr])}"
    assert set(asked(two, one).removeprefix("differs from second in: ").split(", ")) == {attention_map, act, *lr}
    alone = of("singlestage", common | {attention_map: 0.5})
    assert asked(alone, of("singlestage", common)) == f"{attention_map}: 0.5 against 0.0"
    labels = [arm.label for arm in make_arms([alone, of("singlestage", common | other)])]
    assert all(f"{attention_map}={value}" in label for value, label in zip(("0.5", "0.0"), labels))


def test_further_loss_terms_of_a_stage_that_the_other_lacks_are_no_difference():
    extra = {"stages.ternary.lr": 1, "stages.ternary.loss.extra.attention_map": 0.5}
    assert asked(of("progressive", extra, single_binary=576), of("singlestage")) == "what W2A8 steps give"


def test_other_teachers_at_one_seed_are_a_cause():
    one = of("multistage")
    teacher = replace(one.stages[0], key="another")
    other = replace(one, stages=[teacher, *(s for s in one.stages[1:] if s.name != "split")])
    assert asked(one, other) == "differs from second in: teachers, splitting"
    assert asked(one, replace(other, seed=2)) == "what splitting gives"
