"""What `plan` expects: time and memory from measured steps, and the results that a run would replace."""

import json

import pytest

from bitkd.cli import main
from bitkd.config.load import load_config
from bitkd.pipeline.estimate import _measured
from bitkd.pipeline.plan import make_plan
from bitkd.pipeline.replaced import replaced_by
from bitkd.pipeline.runner import run
from bitkd.store.artifacts import Store


def estimates(overrides):
    return {row["name"]: row["estimate"] for row in make_plan(load_config(overrides)).rows()}


def record(runs, stage):
    return json.loads((runs / "rte" / "singlestage" / stage / "stage.json").read_text())


def test_a_stage_keeps_what_an_estimate_needs(finished):
    for stage in ("teacher", "single", "single_binary"):
        found = record(finished, stage)
        assert len(found["workload"]) == 20
        assert 50 < found["memory_mib"] < 100_000
    assert "workload" not in record(finished, "init")


def test_nothing_is_estimated_for_what_is_done_or_was_never_measured(finished, settings, tmp_path):
    assert set(estimates(settings(finished)).values()) == {None}
    assert set(estimates(settings(tmp_path)).values()) == {None}


@pytest.mark.parametrize("change", ["seed=3", "train.lr=3e-3", "run.name=other"])
def test_other_steps_of_the_same_work_scale_with_their_number(finished, settings, change):
    found = estimates(settings(finished, "singlestage", "train.max_steps=40", change))
    assert found["init"] is None
    for stage in ("teacher", "single", "single_binary"):
        measured = record(finished, stage)
        assert found[stage]["seconds"] == pytest.approx(10 * measured["seconds"], rel=0.01)
        assert found[stage]["memory_mib"] == measured["memory_mib"]
        assert found[stage]["device"] == measured["device"]


@pytest.mark.parametrize(
    "change",
    [
        "train.batch_size=16",
        "data.max_length=16",
        "data.pad_to_max_length=true",
        "trainer.cuda_graphs=false",
        "trainer.compile=false",
        "trainer.precision=bf16-mixed",
        "student.layers=[1,3]",
        "trainer.accumulate_grad_batches=2",
        "stages.single.quant.activation_bits=8",
        "stages.single.loss.extra.attention_output=1",
        "stages.single.loss.intervention=map",
    ],
)
def test_other_work_is_not_estimated(finished, settings, change):
    assert estimates(settings(finished, "singlestage", "train.max_steps=40", change))["single"] is None


def test_a_saved_step_shortens_the_estimate(runs, settings):
    overrides = settings(runs, "singlestage", "train.max_steps=40")
    plan = make_plan(load_config(overrides))
    work = plan.store.work(plan["single"].key)
    work.mkdir(parents=True)
    (work / "step-000000030.ckpt").touch()
    row = next(row for row in make_plan(load_config(overrides)).rows() if row["name"] == "single")
    assert (row["state"], row["saved_step"]) == ("partial", 30)
    assert row["estimate"]["seconds"] == pytest.approx(2.5 * record(runs, "single")["seconds"], rel=0.01)


def test_a_damaged_record_estimates_nothing(runs, settings):
    for file in (runs / "store").glob("single_stage-*/stage.json"):
        file.write_text("[1]")
    assert estimates(settings(runs, "singlestage", "seed=3"))["single"] is None


def test_a_record_of_another_version_is_passed_over(tmp_path):
    store = Store(tmp_path)
    (tmp_path / "finetune-0").mkdir()
    (tmp_path / "finetune-0" / "stage.json").write_text('{"workload": "w", "kind": 1}')
    assert _measured("finetune", "w", store) is None


def test_the_results_that_a_changed_setting_replaces_are_named(finished, settings):
    changed = settings(finished, "singlestage", "stages.single.lr=0.02")
    found = replaced_by(make_plan(load_config(changed)))
    assert found.stages == ["single", "single_binary"]
    assert found.changed == {"stages.single.lr": (None, 0.02)}
    assert "single, single_binary. Changed: stages.single.lr null -> 0.02." in found.note("singlestage")
    for same in (settings(finished), settings(finished, "singlestage", "stages.single.lr=0.02", "run.name=new")):
        assert replaced_by(make_plan(load_config(same))) is None


def test_another_seed_replaces_results_too(finished, settings):
    found = replaced_by(make_plan(load_config(settings(finished, "singlestage", "seed=9"))))
    assert list(found.changed) == ["seed"]
    assert "teacher" in found.stages


def test_a_run_says_what_it_replaces_before_it_works(runs, settings, console):
    run(load_config(settings(runs, "singlestage", "stages.single_binary.lr=0.02")), console)
    assert console.lines[0].startswith("note: this replaces finished results of the run singlestage: single_binary.")


def test_plan_tells_machines_the_same(finished, settings, capsys):
    overrides = settings(finished, "singlestage", "stages.single.max_steps=40")
    assert main(["plan", *overrides, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["replaces"]["stages"] == ["single", "single_binary"]
    assert facts["replaces"]["changed"]["stages.single.max_steps"] == [None, 40]
    assert [bool(row["estimate"]) for row in facts["stages"]] == [False, False, True, True]
    assert main(["plan", *overrides]) == 0
    text = capsys.readouterr().out
    assert "as measured before on" in text
    assert "note: this replaces finished results" in text
