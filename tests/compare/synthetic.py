"""Synthetic runs: five arms of an MRPC-like task, as records and as run folders."""

import json
import zlib
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

import bitkd.compare.differences
from bitkd.compare.exported import Exported, Speed
from bitkd.compare.resampling import resampled_scores
from bitkd.compare.runs import Predictions, Run, Stage
from bitkd.compare.scores import score
from bitkd.data.metrics import build_metrics, primary_score
from bitkd.data.tasks import TaskSpec
from bitkd.files import digest
from bitkd.store.artifacts import METRICS_FILE, PREDICTIONS_FILE, STAGE_FILE, WEIGHTS_FILE
from bitkd.store.records import FlopsRecord, MetricsRecord, RunManifest, SizeRecord, StageRecord
from bitkd.store.run_folder import MANIFEST

ROWS = 408
NEWER = (
    "validation_seconds",
    "saving_seconds",
    "padded_tokens",
    "tokens",
    "selected",
    "selected_step",
    "selection_rows",
)
GENERAL = ("general", "General KD", "general", "W32A32", None)
FP32 = [
    ("stage1", "Stage-I KD", "intermediate", "W32A32", 0.72),
    ("stage2", "Stage-II KD", "prediction", "W32A32", 0.83),
]
BINARY = [
    ("stage1_binary", "Stage-I KD (1-bit)", "intermediate", "W1A8", 0.75),
    ("stage2_binary", "Stage-II KD (1-bit)", "prediction", "W1A8", 0.79),
]
TERNARY = ("ternary", "KD (2-bit)", "single_stage", "W2A8", 0.81)
SPLIT = ("split", "Weight-Splitting", "split", "W1A8", 0.80)
SINGLE = [
    ("init", "Initialization", "init", "W32A32", 0.84),
    ("single", "Single-Stage KD", "single_stage", "W32A32", 0.85),
]
ARMS = {
    "multistage": [GENERAL, *FP32, TERNARY, SPLIT, *BINARY],
    "singlestage": [*SINGLE, ("single_binary", "Single-Stage KD (1-bit)", "single_stage", "W1A8", 0.80)],
    "progressive": [
        *SINGLE,
        ("ternary", "KD (2-bit)", "single_stage", "W2A8", 0.82),
        ("single_binary", "Single-Stage KD (1-bit)", "single_stage", "W1A8", 0.81),
    ],
    "halfternary": [GENERAL, *FP32, ("ternary", "KD (2-bit)", "single_stage", "W2A8", 0.77)],
    "splitdirect": [GENERAL, *FP32, ("split", "Weight-Splitting", "split", "W1A8", 0.70), *BINARY],
}
HALF = ("multistage", "halfternary", "splitdirect")


def predict(labels, accuracy, seed):
    """Predictions that are right with this chance."""
    random = np.random.default_rng(seed)
    wrong = random.random(len(labels)) > accuracy
    return [float(1 - y) if w else float(y) for y, w in zip(labels, wrong)]


def make_stage(name, title, kind, precision, accuracy, labels, seed, steps, width=1.0, key=None):
    """A stage of `steps` optimizer steps of 32 rows; predictions as good as `accuracy`."""
    trains = kind not in ("init", "split")
    predicted = None if accuracy is None else predict(labels, accuracy, zlib.crc32(f"{seed}/{name}/{width}".encode()))
    value = None if predicted is None else score("accuracy", 2, np.array(labels), np.array(predicted))
    bits = {"W1A8": 1, "W2A8": 2}.get(precision, 32)
    # Stages after the split are known by their names here.
    tables = 2 if kind == "split" or name in ("stage1_binary", "stage2_binary") else 1
    parameters = int(22e6 * width * (2 if tables == 2 else 1) + 4.6e6 * (tables - 1))
    seen = range(steps // 4, steps + 1, steps // 4) if trains else ()
    goal = value if value is not None else -0.2
    per_step = int(2e11 * width)
    return Stage(
        name=name,
        title=title,
        kind=kind,
        key=f"{kind}-{digest(key or [name, seed, width])}",
        upstream={},
        in_chain=kind not in ("finetune", "augment"),
        score=value,
        dev={"dev": {"loss": 0.4, "accuracy": value, "f1": value}} if value is not None else {"dev": {"loss": 0.2}},
        precision=precision,
        parameters=parameters,
        encoder_bits=int(10.6e6 * width * bits * tables),
        word_tables=tables,
        paper_mib=parameters * bits / 8 / 2**20,
        packed_mib=parameters * min(bits, 16) * 1.15 / 8 / 2**20,
        disk_mib=parameters * 4 / 2**20,
        steps=steps if trains else 0,
        examples=steps * 32 if trains else 0,
        student_flops=steps * per_step * 3 if trains else 0,
        teacher_flops=steps * int(2e11) if trains and kind != "finetune" else 0,
        seconds=steps * 0.31 if trains else 0.0,
        device="x86_64",
        world_size=1,
        trainer_precision="32-true",
        curve=[(step, goal - 0.25 * (1 - step / steps) ** 2 + 0.01 * np.sin(step + seed)) for step in seen],
        predictions=None if predicted is None else {"dev": Predictions(list(labels), predicted)},
        importance_flops=int(1e12) if kind == "general" else 0,
        validation_seconds=steps * 0.03 if trains else 0.0,
        saving_seconds=steps * 0.01 if trains else 0.0,
        padded_tokens=steps * 32 * 48 if trains else 0,
        tokens=steps * 32 * 40 if trains else 0,
        selected=("last" if value is None else "best") if trains else None,
        selected_step=seen[-1] if trains else None,
        selection_rows=len(labels) if trains and value is not None else None,
    )


def make_one(pipeline, seed, steps=300, rows=ROWS):
    random = np.random.default_rng(7)
    labels = [float(y) for y in (random.random(rows) < 0.68)]
    width = 0.5 if pipeline in HALF else 1.0
    stages = [make_stage("teacher", "Teacher", "finetune", "W32A32", 0.87, labels, seed, 500, key=seed)]
    for name, title, kind, precision, accuracy in ARMS[pipeline]:
        count = 600 if kind == "general" else steps
        stages.append(make_stage(name, title, kind, precision, accuracy, labels, seed, count, width))
    linked = []
    for position, stage in enumerate(stages):
        student = stages[position - 1].name if position else "pretrained"
        stage = replace(stage, upstream={"student": "pretrained" if stage.kind == "general" else student})
        keeps = stage.kind == "finetune" or position == len(stages) - 1
        linked.append(stage if keeps else replace(stage, predictions=None))
    return Run(
        name=f"{pipeline}-{seed}",
        pipeline=pipeline,
        title=f"the pipeline {pipeline}",
        task="mrpc",
        metric="accuracy",
        metrics=["accuracy", "f1"],
        labels=["not_equivalent", "equivalent"],
        seed=seed,
        hyperparameters=11,
        budget=None,
        settings={"stages.single.lr": 0.0001},
        versions={"torch": "2.13.0", "python": "3.11.7"},
        stages=linked,
    )


def make_all(arms=tuple(ARMS), seeds=(1, 2)):
    return [make_one(arm, seed) for arm in arms for seed in seeds]


def differences(arms, resamples=1000):
    """The differences between arms, on fewer resamples than a report takes."""
    return bitkd.compare.differences.differences(arms, resampled_scores(arms, resamples))


def with_measurement(run, file_mib=3.25, times_faster=4.5):
    """A run whose exported student was measured."""
    shapes = [(1, 32, 2.5), (8, 128, 40.0)]
    speeds = [Speed(batch, length, ms, ms * times_faster, times_faster) for batch, length, ms in shapes]
    return replace(run, exported=Exported(file_mib, speeds, "a processor, one thread", "the engine"))


def measure(task: TaskSpec, labels, predicted):
    """The primary score by bitkd's own metrics."""
    import torch

    metrics = build_metrics(task)
    kind = torch.float32 if task.labels is None else torch.int64
    metrics.update(torch.tensor(predicted, dtype=kind), torch.tensor(labels, dtype=kind))
    return primary_score(task, {name: float(value) for name, value in metrics.compute().items()})


def write_run(run, folder):
    """A run folder as `bitkd run` leaves it, as far as a comparison reads it."""
    keys = {stage.name: stage.key for stage in run.stages}
    manifest = RunManifest(
        task=run.task,
        pipeline=run.pipeline,
        title=run.title,
        seed=run.seed,
        metric=run.metric,
        metrics=run.metrics,
        labels=run.labels,
        processes=1,
        hyperparameters=run.hyperparameters,
        budget=run.budget,
        settings=run.settings,
        titles={stage.name: stage.title for stage in run.stages},
        kinds={stage.name: stage.kind for stage in run.stages},
        upstream={stage.name: stage.upstream for stage in run.stages},
        planned=keys,
        artifacts=keys,
    )
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text(json.dumps(manifest.as_data()))
    for stage in run.stages:
        place = folder.parent / "store" / stage.key
        place.mkdir(parents=True, exist_ok=True)  # runs share a teacher
        (folder / stage.name).symlink_to(place)
        (place / STAGE_FILE).write_text(json.dumps(stage_record(run, stage).as_data()))
        (place / METRICS_FILE).write_text(json.dumps(MetricsRecord(stage.score, stage.dev).as_data()))
        (place / WEIGHTS_FILE).write_bytes(b"x" * 2**10)
        if stage.predictions:
            given = stage.predictions["dev"]
            logits = given.scored.reshape(len(given.labels), -1).astype(np.float32)
            if run.labels:
                logits = np.eye(len(run.labels), dtype=np.float32)[np.array(given.predicted, dtype=int)]
            labels = np.array(given.labels, dtype=np.int64)
            save_file({"dev.logits": logits, "dev.labels": labels}, place / PREDICTIONS_FILE)
    return folder


def stage_record(run, stage):
    """What `bitkd run` writes of a student."""
    size = SizeRecord(
        parameters=stage.parameters,
        precision=stage.precision,
        paper_mib=stage.paper_mib,
        file_mib=stage.packed_mib,
        encoder_bits=stage.encoder_bits,
        word_tables=stage.word_tables,
    )
    return StageRecord(
        format=1,
        name=stage.name,
        kind=stage.kind,
        title=stage.title,
        task=run.task,
        texts=2,
        fingerprint="",
        inputs={},
        settings={},
        seed=run.seed,
        steps=stage.steps,
        examples=stage.examples,
        seconds=stage.seconds,
        world_size=stage.world_size,
        precision=stage.trainer_precision,
        device=stage.device,
        created="",
        versions=run.versions,
        size=size,
        curve=stage.curve,
        flops=FlopsRecord(stage.student_flops, stage.teacher_flops, stage.importance_flops),
        **{name: getattr(stage, name) for name in NEWER},
    )


@pytest.fixture
def run_of():
    return make_one


@pytest.fixture
def runs_of():
    return make_all


@pytest.fixture
def measured():
    return measure
