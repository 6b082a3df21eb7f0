import json

import pytest

from bitkd.cli import main
from bitkd.config.load import load_config
from bitkd.errors import InputError
from bitkd.pipeline.context import StageContext
from bitkd.pipeline.observer import Observer
from bitkd.pipeline.plan import make_plan
from bitkd.pipeline.runner import StageFailedError, run
from bitkd.processes.group import Group
from bitkd.processes.signals import Stopping

AUGMENTED = ["task.augmentation.enabled=true", "task.augmentation.variants=2", "task.augmentation.candidates=3"]


def plan_of(overrides):
    return make_plan(load_config(overrides))


@pytest.mark.parametrize("pipeline", ["multistage", "singlestage"])
def test_augmentation_is_a_node_of_the_graph(finished, settings, pipeline):
    plan = plan_of(settings(finished, pipeline, *AUGMENTED))
    names = [stage.name for stage in plan.stages]
    learners = [stage.name for stage in plan.stages if "data" in stage.upstream]
    assert names.index("augment") < min(names.index(name) for name in learners)
    assert learners == [n for n in names if n not in ("teacher", "general", "init", "split", "augment")]
    # Runs on other augmented rows are no seeds of one arm.
    assert plan.content_read()["content of augmented rows"] == plan["augment"].fingerprint[:12]
    states = {stage.name: plan.state(stage) for stage in plan.stages}
    assert {name for name, state in states.items() if state == "done"} == {"teacher", "general", "init"} & set(names)


def test_a_run_on_augmented_rows_counts_epochs_over_them(settings, console, tmp_path):
    epoch = ["train.max_steps=null", "train.epochs=1", "train.batch_size=16", "train.eval_every=100"]
    overrides = settings(tmp_path, "singlestage", *AUGMENTED, *epoch)
    assert [stage.steps_known for stage in plan_of(overrides).stages] == [True, True, True, False, False]
    run(load_config(overrides), console)
    assert [line.split()[4] for line in console.lines if "finished:" in line] == [
        "teacher",
        "init",
        "augment",
        "single",
        "single_binary",
    ]
    plan = plan_of(overrides)
    rows = json.loads((plan.store.path(plan["augment"].key) / "stage.json").read_text())["augmented"]["rows"]
    assert rows > 2 * 96
    assert plan["teacher"].total_steps == 96 // 16
    assert plan["single"].total_steps == rows // 16
    assert {plan.state(stage) for stage in plan.stages} == {"done"}


def test_a_cut_augmentation_goes_on_and_its_rows_can_be_given(settings, console, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("bitkd.data.augment.augmenter.BLOCK", 16)
    monkeypatch.setattr("bitkd.data.augment.augmenter.SHARD_ROWS", 32)
    overrides = settings(tmp_path, "singlestage", *AUGMENTED)
    from bitkd.pipeline import augmentation

    original, calls = augmentation.write_shard, []

    def cut(augmenter, number, folder):
        calls.append(number)
        if number == 1 and len(calls) == 2:
            raise OSError("No space left on device")
        return original(augmenter, number, folder)

    monkeypatch.setattr(augmentation, "write_shard", cut)
    with pytest.raises(StageFailedError, match=r"stage augment failed: OSError: No space left.*\nnot run: single,"):
        run(load_config(overrides), console)
    plan = plan_of(overrides)
    assert plan.state(plan["augment"]) == "partial"
    run(load_config(overrides), console)
    made = read_weights_of(tmp_path)

    alone = tmp_path / "alone"
    assert main(["augment", *settings(alone, "singlestage", *AUGMENTED)[1:], "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["examples"]) == 10
    given = [*AUGMENTED, f"task.augmentation.path={answer['folder']}"]
    run(load_config(settings(alone, "singlestage", *given)), console)
    assert read_weights_of(alone) == made
    with pytest.raises(InputError, match=r"was made with data\.max_length=32"):
        plan_of(settings(alone, "singlestage", *given, "data.max_length=24"))
    artifact = alone / "rte" / "singlestage" / "teacher"
    with pytest.raises(InputError, match="holds no augmented rows"):
        plan_of(settings(alone, "singlestage", *AUGMENTED, f"task.augmentation.path={artifact}"))


def test_augmentation_takes_the_settings_of_a_run(settings, tmp_path, capsys):
    assert main(["augment", *settings(tmp_path, "multistage", "budget.steps=100", "task.augmentation.variants=1")]) == 0
    assert "rows of 96" in capsys.readouterr().out


def test_rows_made_with_held_out_ones_are_not_given_to_a_holdout(settings, console, tmp_path, capsys):
    assert main(["augment", *settings(tmp_path, "singlestage", *AUGMENTED)[1:], "--json"]) == 0
    given = f"task.augmentation.path={json.loads(capsys.readouterr().out)['folder']}"
    plan_of(settings(tmp_path, "singlestage", *AUGMENTED, given))
    with pytest.raises(InputError, match="was made of other training rows"):
        plan_of(settings(tmp_path, "singlestage", *AUGMENTED, given, "data.selection=holdout"))


@pytest.mark.parametrize("change", ["task.metrics=[accuracy,F1Score]", "trainer.precision=bf16-mixed", "seed=3"])
def test_what_changes_no_row_augments_nothing_anew(settings, tmp_path, change):
    before, after = (
        plan_of(settings(tmp_path, "singlestage", *AUGMENTED, *more))["augment"].key for more in ([], [change])
    )
    assert before == after


def test_an_augmentation_that_another_run_finishes_is_finished(settings, console, tmp_path, monkeypatch):
    from bitkd.pipeline import augmentation

    overrides = settings(tmp_path, "singlestage", *AUGMENTED)
    original = augmentation.write_shard

    def overtaken(augmenter, number, folder):
        monkeypatch.setattr(augmentation, "write_shard", original)
        other = plan_of(overrides)
        context = StageContext(other, other["augment"], Group(other.config.trainer), Stopping(), console, Observer())
        augmentation.augment(context)  # publishes, drops the work folder
        raise FileNotFoundError(folder)

    monkeypatch.setattr(augmentation, "write_shard", overtaken)
    run(load_config(overrides), console)
    assert any("augment finished" in line for line in console.lines)


def read_weights_of(runs):
    manifest = json.loads((runs / "rte" / "singlestage" / "manifest.json").read_text())
    return {
        name: (runs / "rte" / "singlestage" / name / "model.safetensors").read_bytes()
        for name in manifest["artifacts"]
        if name != "augment"
    }


def test_a_holdout_chooses_checkpoints_and_dev_is_measured_at_the_end(settings, console, tmp_path):
    overrides = settings(tmp_path, "singlestage", "data.selection=holdout", *AUGMENTED)
    run(load_config(overrides), console)
    folder = tmp_path / "rte" / "singlestage"
    metrics = json.loads((folder / "single_binary" / "metrics.json").read_text())
    assert set(metrics) == {"score", "holdout", "dev"}
    assert metrics["score"] == pytest.approx(metrics["dev"]["accuracy"])
    columns = next((folder / "logs" / "single_binary").glob("*/metrics.csv")).read_text().splitlines()[0].split(",")
    assert "holdout/accuracy" in columns
    assert "dev/accuracy" not in columns
    stage = json.loads((folder / "augment" / "stage.json").read_text())
    assert stage["augmented"]["sources"] == 96 - sum(round(n / 10) for n in label_counts(overrides))


def label_counts(overrides):
    data = plan_of([*overrides, "data.selection=dev"]).sources.task_rows
    labels = data.train_texts()["label"]
    return [labels.count(label) for label in sorted(set(labels))]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["task.augmentation.source=masked_lm"], "has no trained masked-LM head"),
        (["task.augmentation.variants=0"], "variants=0 is too small"),
        (["data.selection=test"], "selection=test is unknown; use one of dev, holdout"),
        (["stages.init.augmented=true"], "does not train on the task"),
        (["stages.teacher.augmented=true", "task.augmentation.enabled=false"], "but nothing is augmented"),
    ],
)
def test_augmentation_that_cannot_be_is_refused_before_any_work(settings, console, tmp_path, more, message):
    with pytest.raises(InputError, match=message):
        run(load_config(settings(tmp_path / "runs", "singlestage", *AUGMENTED, *more)), console)
    assert not (tmp_path / "runs").exists()
