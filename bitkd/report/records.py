"""A finished run as plain data: read out of its folder's records, written to comparison.json and read again."""

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bitkd.errors import InputError

FORMAT = 1
HOLDOUT = "holdout"
"""Rows of the training set that choose checkpoints (bitkd.data.task.HOLDOUT, which is slow to import); not the first dev set."""

PREDICTIONS_FILE = "predictions.safetensors"
MIB = 2**20


@dataclass(frozen=True)
class Predictions:
    """What a stage says about each row of a dev set, in the order of the rows: label numbers, or a regression's values."""

    labels: list[float]
    predicted: list[float]


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    in_chain: whether it is part of the pipeline's own chain and its cost, see `chain_of`.
    score: the primary metric on the first dev set, larger is better; null where there is no head (General KD, rows).
    dev: each dev set's metrics and loss.  paper_mib, packed_mib: sizes by the two conventions (bitkd.models.size).
    disk_mib: the file as it lies there.  word_tables: 2 after a split with split embeddings.
    student_flops, teacher_flops: of training, over all processes.  seconds: of training by the clock of the first process,
    over all resumptions.  device, world_size, trainer_precision: what it was trained on, processes, arithmetic (bf16-mixed).
    curve: (step, score) at each validation.  predictions: by dev set; of the teacher and the final stage, else null.
    """

    name: str
    title: str
    kind: str
    key: str
    upstream: dict[str, str]
    in_chain: bool
    score: float | None
    dev: dict[str, dict[str, float | None]]
    precision: str
    parameters: int
    encoder_bits: int
    word_tables: int
    paper_mib: float
    packed_mib: float
    disk_mib: float
    steps: int
    examples: int
    student_flops: int
    teacher_flops: int
    seconds: float
    device: str
    world_size: int
    trainer_precision: str
    curve: list[tuple[int, float]]
    predictions: dict[str, Predictions] | None = None

    @property
    def is_model(self) -> bool:
        return self.kind != "augment"

    @property
    def machine(self) -> str:
        """What it was trained on, as far as seconds depend on it."""
        processes = f"{self.world_size} process{'' if self.world_size == 1 else 'es'}"
        return ", ".join(part for part in (self.device, processes, self.trainer_precision) if part)


@dataclass(frozen=True)
class Run:
    """A finished run.  metric: the task's primary metric.  labels: names in order; null for a regression.
    hyperparameters: how many the pipeline and the run set.  budget: unit, total and shares, or null.
    settings: dotted name -> value of all that decides numbers but the seed; runs with the same ones are one arm.
    stages: in the order of the graph; the last one is the final student.
    """

    name: str
    pipeline: str
    title: str
    task: str
    metric: str
    metrics: list[str]
    labels: list[str] | None
    seed: int
    hyperparameters: int
    budget: dict[str, Any] | None
    settings: dict[str, Any]
    versions: dict[str, str]
    stages: list[Stage]

    @property
    def final(self) -> Stage:
        return self.stages[-1]

    @property
    def teacher(self) -> Stage | None:
        """The fine-tuned teacher; null where the pipeline has none."""
        return next((stage for stage in self.stages if stage.kind == "finetune" and not stage.in_chain), None)

    @property
    def total(self) -> tuple[str, float] | None:
        """Unit and total of the budget, which pipelines have in common while their shares differ; null where there is none."""
        return (self.budget["unit"], self.budget["total"]) if self.budget else None

    @property
    def num_labels(self) -> int | None:
        """Null for a regression."""
        return None if self.labels is None else len(self.labels)

    @property
    def said(self) -> Predictions:
        """The final student's predictions on the first dev set; InputError where there are none."""
        found = (self.final.predictions or {}).get(self.dev_set)
        if found is None:
            raise InputError(
                f"{self.name}: its final stage {self.final.name} keeps no predictions of {self.dev_set}; run it again"
            )
        return found

    @property
    def dev_set(self) -> str:
        """Name of the first dev set, whose primary metric is the score."""
        return next(name for name in self.final.dev if name != HOLDOUT)


def chain_of(kinds: Mapping[str, str], upstream: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The stages of a pipeline's own chain. Apart from it, because pipelines share them: augmented rows and teachers.

    A fine-tuned model is a teacher where it teaches others or comes from the pre-trained model, and is neither the final
    student nor made from another student.  kinds: by stage, in graph order.  upstream: stage -> role -> stage.
    """
    models = [stage for stage in kinds if kinds[stage] != "augment"]
    taught_by = {upstream.get(stage, {}).get("teacher") for stage in kinds}
    teachers: set[str] = set()
    for stage in models:
        source = upstream.get(stage, {}).get("student")
        is_root = source not in kinds
        is_final = stage == models[-1] and len(models) > 1
        if kinds[stage] == "finetune" and not is_final and (is_root or (source in teachers and stage in taught_by)):
            teachers.add(stage)
    return [stage for stage in models if stage not in teachers]


def check_complete(name: str, info: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]]) -> None:
    """InputError where a run lacks what a comparison needs. Arguments: see `make_run`."""
    last = list(stages.values())[-1]["stage"].get("kind") if stages else None
    if last in (None, "augment", "general"):
        raise InputError(f"{name} ends in no student of the task (its last stage is of kind {last}); name another run")
    absent = [key for key in ("metrics", "kinds", "upstream", "hyperparameters", "settings") if key not in info]
    for stage, data in stages.items():
        kind = data["stage"].get("kind")
        if kind == "augment":
            continue
        absent += [f"{stage}'s {key}" for key in ("flops", "curve") if key not in data["stage"]]
        absent += [f"{stage}'s {key}" for key in ("word_tables",) if key not in data["stage"].get("size", {})]
    if absent:
        shown = ", ".join(absent[:4]) + (", …" if len(absent) > 4 else "")
        raise InputError(
            f"{name} was made by an older version: its records lack {shown}; run it again (bitkd run with its settings)"
        )


def make_run(name: str, info: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]]) -> Run:
    """A run out of its manifest `info` and its artifacts' records.

    stages: stage name -> {"path": folder, "stage": stage.json, "metrics": metrics.json}, in graph order.
    What an older version did not record is 0 or empty (`check_complete` finds it). Raises InputError where a record
    is damaged.
    """
    names = list(stages)
    kinds = {stage: data["stage"].get("kind", "") for stage, data in stages.items()}
    try:
        chain = chain_of(kinds, info.get("upstream", {}))
        teacher = next((stage for stage in names if kinds[stage] == "finetune" and stage not in chain), None)
        return Run(
            name=name,
            pipeline=info["pipeline"],
            title=info["title"],
            task=info["task"],
            metric=info["metric"],
            metrics=list(info.get("metrics", [])),
            labels=info.get("labels"),
            seed=info["seed"],
            hyperparameters=info.get("hyperparameters", 0),
            budget=info.get("budget"),
            settings=dict(info.get("settings", {})),
            versions=_versions([data["stage"].get("versions", {}) for data in stages.values()]),
            stages=[
                _make_stage(stage, info, data, stage in chain, with_predictions=stage in (teacher, names[-1]))
                for stage, data in stages.items()
            ],
        )
    except (KeyError, TypeError, AttributeError, StopIteration) as error:
        raise InputError(f"{name}: its records are damaged ({type(error).__name__}: {error}); run it again") from error


def _versions(of_stages: list[Mapping[str, str]]) -> dict[str, str]:
    """Each library's version, or versions where stages were made by several."""
    names = dict.fromkeys(name for versions in of_stages for name in versions)
    return {name: ", ".join(sorted({versions[name] for versions in of_stages if name in versions})) for name in names}


def _make_stage(
    name: str, info: Mapping[str, Any], data: Mapping[str, Any], in_chain: bool, with_predictions: bool
) -> Stage:
    record, metrics, folder = data["stage"], data["metrics"], Path(data["path"])
    is_model = record["kind"] != "augment"
    size, flops = record.get("size", {}), record.get("flops", {})
    model = folder / "model.safetensors"
    if is_model and not (size and model.is_file()):
        raise InputError(f"{folder} is damaged: it has no {model.name if size else 'size'}; run the stage again")
    labels, file = info.get("labels"), folder / PREDICTIONS_FILE
    # Without a head there is nothing that it could say, and older versions kept none.
    with_predictions = with_predictions and metrics["score"] is not None and "flops" in record
    return Stage(
        name=name,
        title=info["titles"][name],
        kind=record["kind"],
        key=folder.resolve().name,
        upstream=dict(info.get("upstream", {}).get(name, {})),
        in_chain=in_chain,
        score=_finite(metrics["score"]),
        dev={
            dev: {metric: _finite(value) for metric, value in values.items()}
            for dev, values in metrics.items()
            if dev != "score"
        },
        precision=size.get("precision", ""),
        parameters=size.get("parameters", 0),
        encoder_bits=size.get("encoder_bits", 0),
        word_tables=size.get("word_tables", 1 if is_model else 0),
        paper_mib=size.get("paper_mib", 0.0),
        packed_mib=size.get("file_mib", 0.0),
        disk_mib=model.stat().st_size / MIB if is_model else 0.0,
        steps=record.get("steps", 0),
        examples=record.get("examples", 0),
        student_flops=flops.get("student", 0),
        teacher_flops=flops.get("teacher", 0),
        seconds=record["seconds"],
        device=record.get("device", ""),
        world_size=record.get("world_size", 1),
        trainer_precision=record.get("precision", ""),
        curve=[(step, score) for step, score in record.get("curve", []) if math.isfinite(score)],
        predictions=read_predictions(file, labels) if with_predictions else None,
    )


def read_predictions(file: Path, labels: list[str] | None) -> dict[str, Predictions]:
    """The predictions of an artifact by dev set; InputError where the file is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not file.is_file():
        raise InputError(f"{file} is missing; run the stage again")
    try:
        tensors = load_file(file)
        found = {}
        for key in sorted(tensors):
            name, _, part = key.rpartition(".")
            if part != "logits" or name == HOLDOUT:
                continue
            logits, targets = tensors[key], tensors[f"{name}.labels"]
            if logits.ndim != 2 or len(logits) != len(targets) or len(targets) == 0:
                raise ValueError(f"{name} has logits {logits.shape} for labels {targets.shape}")
            predicted = logits[:, 0] if labels is None else logits.argmax(axis=1)
            found[name] = Predictions(targets.tolist(), predicted.tolist())
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise InputError(f"{file} is damaged ({error}); run the stage again") from error
    return found


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def to_json(runs: list[Run]) -> str:
    """The record of a comparison: everything that its report is made from. Lists of numbers stand on one line."""
    text = json.dumps({"format": FORMAT, "runs": [asdict(run) for run in runs]}, indent=1, ensure_ascii=False)
    return re.sub(r"\[\s*(-?\d[-+.\deE,\s]*?)\s*\]", lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def from_json(text: str, where: str) -> list[Run]:
    """The runs of a comparison.json; InputError where it is damaged or of another format. where: its name in messages."""
    advice = "make it again with `bitkd compare RUN… --out DIR`"
    try:
        content = json.loads(text)
        if not isinstance(content, dict) or "format" not in content:
            raise InputError(f"{where} was made by an older version (it names no format); {advice}")
        if content["format"] != FORMAT:
            raise InputError(f"{where} has format {content['format']}, this version reads {FORMAT}; {advice}")
        runs = [_run_of(run) for run in content["runs"]]
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{where} is damaged ({type(error).__name__}: {error}); {advice}") from error
    if not runs or not all(run.stages and set(run.final.dev) - {HOLDOUT} for run in runs):
        raise InputError(f"{where} is damaged (runs without stages or dev sets); {advice}")
    return runs


def _run_of(content: dict[str, Any]) -> Run:
    stages = []
    for stage in content["stages"]:
        given = stage["predictions"]
        predictions = None if given is None else {name: Predictions(**value) for name, value in given.items()}
        curve = [(step, score) for step, score in stage["curve"]]
        stages.append(Stage(**(stage | {"predictions": predictions, "curve": curve})))
    return Run(**(content | {"stages": stages}))


def write_file(file: Path, content: str | bytes) -> None:
    """Write a file so that readers see the old one or the new one, never half of either."""
    data = content.encode() if isinstance(content, str) else content
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
