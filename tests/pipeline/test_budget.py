import pytest

from bitkd.config.comparable import hyperparameters
from bitkd.config.load import load_config
from bitkd.errors import InputError
from bitkd.pipeline.budget import _apportion
from bitkd.pipeline.flops import count_flops
from bitkd.pipeline.plan import make_plan
from bitkd.pipeline.runner import run
from tests.conftest import read_record

ARMS = ["multistage", "singlestage", "progressive", "halfternary", "splitdirect", "generalbinary"]


def steps_of(overrides):
    return {stage.name: stage.total_steps for stage in make_plan(load_config(overrides)).stages if stage.trains}


@pytest.mark.parametrize("arm", ARMS)
def test_steps_add_up_to_the_total_and_the_teacher_is_apart(settings, tmp_path, arm):
    for total in (100, 107):
        steps = steps_of(settings(tmp_path, arm, f"budget.steps={total}"))
        assert steps.pop("teacher") == 4
        assert sum(steps.values()) == total


@pytest.mark.parametrize("total", [101, 2048])
def test_arms_share_the_stages_that_they_have_in_common(settings, tmp_path, total):
    plans = {arm: make_plan(load_config(settings(tmp_path, arm, f"budget.steps={total}"))) for arm in ARMS}
    keys = {arm: {stage.name: stage.key for stage in plan.stages} for arm, plan in plans.items()}
    for arm in ("halfternary", "splitdirect"):
        assert [keys[arm][name] == keys["multistage"][name] for name in ("general", "stage1", "stage2")] == [True] * 3
    assert keys["progressive"]["single"] == keys["singlestage"]["single"]
    assert len({key["teacher"] for key in keys.values()}) == 1


def test_a_warm_up_in_epochs_is_one_in_steps(settings, tmp_path):
    """An epoch has 12 steps: 96 rows by 8."""

    def warm_up(*more):
        stages = make_plan(load_config(settings(tmp_path, "singlestage", "train.max_steps=24", *more))).stages
        return {stage.name: stage.total_steps * stage.train.warmup_ratio for stage in stages if stage.trains}

    everywhere = ["train.warmup_epochs=0.5"]
    own = ["stages.teacher.warmup_ratio=0.125", "stages.single.warmup_epochs=1", "stages.single.batch_size=16"]
    assert warm_up(*everywhere, *own) == pytest.approx({"teacher": 3, "single": 6, "single_binary": 6})
    # The steps of a stage that ends early are those of a longer one.
    early = warm_up("train.warmup_epochs=1", "stages.single.max_steps=2", "budget.steps=null")
    assert early["single"] == pytest.approx(12)
    # Without max_steps, as published: 1 of 3 epochs; and on augmented rows, once these are counted.
    more = ["train.max_steps=null", "train.epochs=3", "train.warmup_epochs=1", "task.augmentation.enabled=true"]
    stages = make_plan(load_config(settings(tmp_path, "singlestage", *more))).by_name
    assert stages["teacher"].total_steps * stages["teacher"].train.warmup_ratio == pytest.approx(12)
    assert not stages["single"].steps_known
    counted = stages["single"].with_steps(20)
    assert (counted.total_steps, counted.train.warmup_ratio) == (60, pytest.approx(1 / 3))


def test_examples_are_counted_by_each_stages_batch(settings, tmp_path):
    more = ["budget.examples=800", "stages.single_binary.batch_size=16"]
    assert steps_of(settings(tmp_path, "singlestage", *more)) == {"teacher": 4, "single": 40, "single_binary": 30}


def test_shares_that_add_up_to_nearly_one_lose_no_step():
    shares = {"a": 0.333333, "b": 0.333333, "c": 0.3333335}
    assert sum(_apportion(3_000_000, shares).values()) == 3_000_000


def test_no_half_step_is_lost_to_rounding():
    shares = {"single": 0.15, "ternary": 0.1, "single_binary": 0.75}
    assert _apportion(10, shares) == {"single": 2, "ternary": 1, "single_binary": 7}


def test_seeds_of_one_arm_get_equal_steps_for_equal_flops(settings, tmp_path):
    found = [steps_of(settings(tmp_path, "singlestage", "budget.flops=5e9", f"seed={seed}")) for seed in (1, 2, 3)]
    assert found[0] == found[1] == found[2]


def test_general_kd_may_be_counted_apart(settings, tmp_path):
    more = ["budget.steps=10", "budget.shares.general=null", "budget.shares.ternary=0.4", "stages.general.max_steps=3"]
    steps = steps_of(settings(tmp_path, "multistage", *more))
    assert steps["general"] == 3
    assert sum(steps.values()) == 4 + 3 + 10


def test_two_pipelines_run_at_the_same_flops(settings, console, tmp_path):
    total, spent = 7e8, {}
    for arm in ("multistage", "singlestage"):
        overrides = settings(tmp_path, arm, f"budget.flops={total}", "train.eval_every=100")
        plan = run(load_config(overrides), console)
        flops = {s.name: read_record(tmp_path, arm, s.name)[0] for s in plan.stages if s.name != "teacher"}
        importance = sum(found["importance"] for found in flops.values())
        costs = {name: found["student"] + found["teacher"] for name, found in flops.items()}
        spent[arm] = sum(costs.values()) + importance
        assert bool(importance) == (arm == "multistage")
        # The cost that was planned is the one of the first pass; later batches are of other lengths.
        for name, share in plan.config.budget.shares.items():
            step = costs[name] / plan[name].total_steps
            part = (total - importance) * share
            assert abs(costs[name] - part) < step + 0.15 * part
        assert count_flops(plan.stages, plan.sources)["general" if importance else "init"][2] == importance
    assert spent["multistage"] == pytest.approx(spent["singlestage"], rel=0.15)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["budget.steps=2"],
            r"budget.steps=2 leaves less than one step for .*; use at least 10, or other budget.shares",
        ),
        (["budget.examples=20"], "budget.examples=20 leaves less than one step"),
        (["budget.steps=10", "budget.examples=80"], "budget.steps and budget.examples are both given"),
        (["budget.steps=-1"], "budget.steps=-1 is no budget; use a positive number"),
        (["budget.steps=100", "budget.shares.ternary=0.3"], "budget.shares add up to 1.1 "),
        (["budget.shares.ternary=0.3"], "budget.shares add up to 1.1 "),
        (["budget.shares.ternaryy=0.3"], "budget.shares.ternaryy is no stage of this pipeline; did you mean ternary?"),
        (["budget.shares.split=0.3"], "budget.shares.split: a split stage has no share"),
        (["budget.shares.teacher=0.3"], "budget.shares.teacher: a finetune stage has no share"),
        (["budget.shares.ternary=-1"], "budget.shares.ternary=-1.0 is outside 0 to 1"),
        (["budget.steps=100", "budget.shares.ternary=null"], "budget.shares has none for ternary"),
        (["budget.steps=100", "stages.ternary.epochs=1"], "stages.ternary.epochs=1.0 and a budget that gives ternary"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(settings, tmp_path, more, message):
    with pytest.raises(InputError, match=message):
        make_plan(load_config(settings(tmp_path, "multistage", *more)))


def test_a_pipeline_without_shares_takes_no_budget(settings, tmp_path):
    pipeline = tmp_path / "own.yaml"
    pipeline.write_text(
        "pipeline: {name: own}\n"
        "stages:\n"
        "  teacher: {kind: finetune}\n"
        "  init: {kind: init, student: teacher}\n"
        "  single: {kind: single_stage, student: init, teacher: teacher}\n"
    )
    with pytest.raises(InputError, match=r"this pipeline's file has no budget.shares; give each of single its share"):
        make_plan(load_config(settings(tmp_path, str(pipeline), "budget.steps=10")))


def test_hyperparameters_are_the_values_that_are_set():
    plain = load_config(["task=rte", "pipeline=singlestage"])
    more = ["train.lr=1e-3", "stages.single.lr=1e-4", "stages.teacher.lr=1e-4", "student.layers=[1,3]", "seed=7"]
    tuned = load_config(["task=rte", "pipeline=singlestage", *more])
    assert hyperparameters(plain) == 2  # weight and activation bits of the 1-bit stage
    assert hyperparameters(tuned) == 2 + 3
    assert hyperparameters(load_config(["task=rte", "pipeline=singlestage", "budget.steps=10"])) == 2 + 2
    terms = [f"stages.single_binary.loss.extra.attention_{term}=0.5" for term in ("map", "output")]
    assert hyperparameters(load_config(["task=rte", "pipeline=singlestage", *terms])) == 2 + 2
    for arm in ("singlestage", "multistage"):
        count = hyperparameters(load_config(["task=rte", f"pipeline={arm}"]))
        assert hyperparameters(load_config(["task=rte", f"pipeline={arm}", "embedding_bits=32"])) == count + 1


@pytest.mark.parametrize("arm", ARMS)
def test_embedding_bits_are_one_setting_of_every_arm(arm):
    config = load_config(["task=rte", f"pipeline={arm}", "embedding_bits=32"])
    low = [stage.quant for stage in config.stages.values() if stage.quant.weight_bits < 32]
    assert low
    assert {quant.resolved_embedding_bits for quant in low} == {32}


def test_binary_embeddings_cannot_be_split(settings, tmp_path):
    with pytest.raises(InputError, match="of its student ternary are 1-bit and cannot be split; use embedding_bits=32"):
        make_plan(load_config(settings(tmp_path, "multistage", "embedding_bits=1")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "ternary.quant.per_row=true",
            "split.quant.per_row=false, but the halves of its student ternary have per_row=true",
        ),
        (
            "ternary.quant.activation_bits=4",
            "set stages.split.quant.activation_bits=4",
        ),
        ("ternary.quant.embedding_bits=8", "set stages.split.quant.embedding_bits=8"),
        ("ternary.quant.levels=4", "ternary.quant.levels=4, but split splits that student, .* use levels=3"),
        ("split.quant.learned_scales=true", "a split computes the scales of its halves; set it in the stages behind"),
    ],
)
def test_a_split_that_would_change_its_student_is_refused(settings, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        make_plan(load_config(settings(tmp_path, "multistage", f"stages.{change}")))


def test_too_few_rows_are_refused_before_flops_are_counted(settings, tmp_path):
    more = ["budget.flops=1e9", "trainer.devices=128", "train.batch_size=128"]
    with pytest.raises(InputError, match="96 rows cannot be divided among 128 processes"):
        make_plan(load_config(settings(tmp_path, "singlestage", *more)))
