"""The library from Python: what is public, running a pipeline, and bitkd's modules in a Trainer of one's own."""

import itertools
import json
import re
import subprocess
import sys

import lightning.pytorch as pl
import pytest
import torch
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

import bitkd
from bitkd.config.load import load_config
from bitkd.pipeline.plan import make_plan
from tests.conftest import Lines


def test_every_public_name_is_there_and_listed():
    assert set(bitkd.__all__) <= set(dir(bitkd))
    for name in bitkd.__all__:
        assert getattr(bitkd, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'prepared'"):
        bitkd.prepared  # noqa: B018


def test_the_names_for_type_checkers_are_the_public_ones():
    import ast
    from pathlib import Path

    block = next(node for node in ast.parse(Path(bitkd.__file__).read_text()).body if isinstance(node, ast.If))
    imported = {alias.name: node.module for node in block.body for alias in node.names}
    assert imported == bitkd._PUBLIC


def test_a_pipeline_runs_from_python_as_by_the_command(finished, settings, tmp_path):
    lines = Lines()
    given = [text for text in settings(finished) if not text.startswith(("pipeline=", "task="))]
    result = bitkd.run("singlestage", *given, console=lines, task="rte")
    stages = [line for line in lines.lines if line.startswith("stage")]
    assert all("is done already" in line for line in stages)  # the command's settings, the command's artifacts
    assert result.folder == finished / "rte" / "singlestage"
    assert result.score == result.stages[-1].score
    assert [stage.name for stage in result.stages] == ["teacher", "init", "single", "single_binary"]
    assert bitkd.load_student(result.student).config.bitkd["quant"]["weight_bits"] == 1


def test_values_become_settings(settings, tmp_path):
    with pytest.raises(bitkd.InputError, match=r"train\.lr=-0.5 is outside 0 to 1"):
        bitkd.run("singlestage", *settings(tmp_path)[1:], **{"train.lr": -0.5})
    with pytest.raises(bitkd.InputError, match=r"student.layers=\[9\] does not fit"):
        bitkd.run("singlestage", *settings(tmp_path)[1:], **{"student.layers": [9]})


def test_a_value_reaches_its_setting_as_it_is(settings, tmp_path):
    folder = tmp_path / "no such: folder #1"
    with pytest.raises(bitkd.InputError, match=re.escape(f"data.dir={folder}: there is no such folder")):
        bitkd.run("singlestage", *settings(tmp_path)[1:], **{"data.dir": folder})


def test_a_splitting_stage_splits_in_any_trainer(tiny_bert):
    from bitkd.stages.split import Splitting

    torch.manual_seed(0)
    model = bitkd.prepare(bitkd.new_classifier(tiny_bert, ["no", "yes"]), bitkd.QuantSpec(weight_bits=2))
    rows = [{"input_ids": torch.ones(2, 4, dtype=torch.long), "labels": torch.tensor([0, 1])}]
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    metrics = {"dev": MetricCollection({"accuracy": MulticlassAccuracy(2)})}
    loader = torch.utils.data.DataLoader(rows, batch_size=None)
    trainer.validate(Splitting(model, metrics=metrics), loader, verbose=False)
    assert model.config.bitkd["split"]


def test_the_modules_work_in_any_trainer(finished, settings, tiny_bert):
    """Two epochs of a student's KD on the task, in a Trainer that knows nothing of bitkd's runs."""
    sources = make_plan(load_config(settings(finished))).sources
    data = bitkd.TaskDataModule(sources.task_rows, bitkd.LoaderSpec(batch_size=32))
    torch.manual_seed(0)
    teacher = bitkd.new_classifier(tiny_bert, sources.config.task.labels)
    student = bitkd.prepare(
        bitkd.build_student(teacher, bitkd.ShapeSpec(layers=[0, 2])), bitkd.QuantSpec(weight_bits=1)
    )
    module = bitkd.SingleStageDistillation(student, teacher, optim=bitkd.OptimSpec(lr=1e-2))
    seen = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append(batch["index"].tolist())

    before = [parameter.detach().clone() for parameter in student.parameters()]
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        callbacks=[Watch()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    assert len(seen) == 2 * (96 // 32)
    assert all(sorted(itertools.chain(*epoch)) == list(range(96)) for epoch in (seen[:3], seen[3:]))
    assert seen[:3] != seen[3:]  # a new order each epoch
    assert any(not torch.equal(old, new) for old, new in zip(before, student.parameters()))


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "pipeline=singlestage", "task=demo", "trian.lr=1"],
        ["run", "pipeline=singlestage", "task=demo", "train.lr=fast"],
        ["run", "pipeline=singlestage", "task=nope"],
        ["run", "pipeline=singlestage", "task=demo", "task.metric=speed"],
        ["run", "pipeline=singlestage", "task=demo", "task.augmentation.model=./nowhere"],
        ["run", "pipeline=singlestage", "task=rte", "data.dir=/nowhere"],
        ["plan", "pipeline=singlestage", "task=rte", "model.pretrained=./nowhere"],
        ["evaluate", "./nowhere", "task=rte"],
        ["predict", "./nowhere", "--text", "a"],
        ["compare", "./nowhere"],
        ["sweep", "./nowhere.yaml"],
        ["sweep", "experiments/sweeps/pipelines.yaml", "data.dir=/nowhere"],
    ],
    ids=lambda words: " ".join(words[:1] + words[-1:]),
)
def test_a_bad_setting_is_refused_before_anything_heavy_is_imported(arguments, fresh_process):
    code, heavy, seconds = fresh_process(arguments)
    assert code == 2
    assert not heavy
    assert seconds < 3  # 0.7 on a quiet machine; importing torch and transformers takes more than 3


@pytest.fixture(scope="module")
def fresh_process():
    """Runs the commands one after another in one fresh process: code, heavy modules imported so far, CPU seconds."""
    program = """
import json, sys, time
for line in sys.stdin:
    began = time.process_time()
    from bitkd.cli import main
    code = main(json.loads(line))
    heavy = sorted({"torch", "transformers", "datasets", "lightning", "sklearn", "wandb", "matplotlib"} & set(sys.modules))
    print(json.dumps([code, heavy, time.process_time() - began]), flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:

        def ask(arguments):
            process.stdin.write(json.dumps(arguments) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield ask
        process.stdin.close()
