"""A budget in seconds: steps from the time that each stage's step took on one device."""

import json
import shutil
from dataclasses import asdict, replace

import pytest

from bitkd.cli import main
from bitkd.compare.runs import Run
from bitkd.config.load import load_config
from bitkd.errors import InputError
from bitkd.pipeline.plan import make_plan
from bitkd.pipeline.runner import _manifest
from bitkd.pipeline.throughput import measured
from bitkd.store.artifacts import read_artifact

NO_STEPS = ("train.max_steps=null", "trainer.keep_teacher_logits=never")


@pytest.fixture(scope="module")
def throughput(finished, tmp_path_factory):
    """A file of the finished runs' stages; those that train take 0.1 s a step, and 0.2 s in each second one."""
    file = tmp_path_factory.mktemp("throughput") / "new" / "throughput.json"
    runs = [str(finished / "rte" / pipeline) for pipeline in ("multistage", "singlestage")]
    assert main(["throughput", *runs, "--device", "a quiet one", "--out", str(file)]) == 0
    content = json.loads(file.read_text())
    for place, time in enumerate(content["stages"]):
        time["seconds_per_step"] = 0.1 + 0.1 * (place % 2)
        time["seconds_before"] = 3.0 if time["title"] == "General KD" else 0.0
    file.write_text(json.dumps(content))
    return file


def test_stages_of_one_name_in_several_runs_are_all_measured(finished, tmp_path, capsys):
    """And once each, if runs share them."""
    run = finished / "rte" / "singlestage"
    other = shutil.copytree(run, tmp_path / "other")
    assert main(["throughput", str(run), str(run), str(other), "--json"]) == 0
    assert {time["artifacts"] for time in json.loads(capsys.readouterr().out)["stages"]} == {2}


def planned(settings, folder, pipeline, file, *more):
    return make_plan(
        load_config(settings(folder, pipeline, *NO_STEPS, f"budget.throughput={file}", "budget.seconds=60", *more))
    )


@pytest.mark.parametrize("pipeline", ["multistage", "singlestage"])
def test_each_stage_gets_the_steps_of_its_share_of_the_seconds(settings, tmp_path, throughput, pipeline):
    plan = planned(settings, tmp_path, pipeline, throughput)
    times = {time["title"]: time for time in json.loads(throughput.read_text())["stages"]}
    apart, spent = 3.0 if pipeline == "multistage" else 0.0, 0.0
    for name, share in plan.config.budget.shares.items():
        stage = plan[name]
        each = times[stage.title]["seconds_per_step"]
        assert 0 <= share * (60 - apart) - stage.total_steps * each < each + 1e-9
        spent += stage.total_steps * each
    assert 60 - 0.2 * len(plan.config.budget.shares) < spent + apart <= 60
    assert plan["teacher"].total_steps == 36  # 3 epochs: the teacher is apart


def test_the_record_names_the_device_and_other_times_are_another_arm(settings, tmp_path, throughput):
    first = _manifest(planned(settings, tmp_path, "singlestage", throughput))
    other = tmp_path / "other.json"
    other.write_text(throughput.read_text().replace("0.2", "0.4"))
    second = _manifest(planned(settings, tmp_path, "singlestage", other))
    assert first.budget == second.budget
    assert first.budget.device == "a quiet one"
    assert first.settings.keys() == second.settings.keys()
    assert {name for name in first.settings if first.settings[name] != second.settings[name]} == {
        "content of throughput"
    }
    run = Run(**{name: None for name in Run.__dataclass_fields__} | {"budget": first.budget})
    assert run.budget_text == "60 seconds on a quiet one"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["budget.throughput=null"],
            r"budget.seconds needs budget.throughput=FILE.*`bitkd throughput RUN… --out FILE`",
        ),
        (["budget.throughput=none.json"], r"budget.throughput=none.json cannot be read \(No such file"),
        (["trainer.keep_teacher_logits=auto"], "use always or never, here and in the runs of budget.throughput"),
        (["trainer.accelerator=auto"], "trainer.compile=auto depends on the number of steps"),
        (["budget.seconds=0"], "budget.seconds=0.0 is no budget"),
        (
            ["budget.seconds=0.1"],
            "budget.seconds=0.1 leaves less than one step for single, single_binary; use at least 1,",
        ),
        (["train.batch_size=16"], "has no time of a step of single, single_binary with these settings"),
        (["budget.steps=100"], "budget.steps and budget.seconds are both given"),
    ],
)
def test_what_cannot_be_divided_is_refused(settings, tmp_path, throughput, more, message):
    with pytest.raises(InputError, match=message):
        planned(settings, tmp_path, "singlestage", throughput, *more)


def test_a_damaged_file_is_refused(settings, tmp_path):
    file = tmp_path / "throughput.json"
    file.write_text('{"format": 1, "device": "x", "stages": [{"title": 1}]}')
    with pytest.raises(InputError, match=r"is damaged or of another version.*name a file that `bitkd throughput"):
        planned(settings, tmp_path, "singlestage", file)


def test_only_training_counts_and_the_median_is_taken(finished):
    record = read_artifact(finished / "rte" / "singlestage" / "single").stage
    parts = {"steps": 10, "seconds_before": 5.0, "validation_seconds": 2.0, "saving_seconds": 1.0}
    found = measured([replace(record, seconds=8.0 + taken, **parts) for taken in (1.0, 2.0, 9.0)])
    assert found.device == record.device
    assert asdict(found.stages[0]) == {
        "title": "Single-Stage KD",
        "workload": record.workload,
        "seconds_per_step": pytest.approx(0.2),
        "seconds_before": 5.0,
        "steps": 30,
        "artifacts": 3,
        "slowest": pytest.approx(9.0),
    }
    for change, message in (
        ({"device": "another"}, "these runs trained on another and on "),
        ({"validation_seconds": None}, "a version that did not measure validations apart"),
    ):
        with pytest.raises(InputError, match=message):
            measured([record, replace(record, **change)])
    with pytest.raises(InputError, match="nothing was trained in these runs"):
        measured([replace(record, workload=None)])
