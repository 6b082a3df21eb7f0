"""A finished run out of its folder's records."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitkd.compare.runs import HOLDOUT, Predictions, Run, Stage
from bitkd.errors import InputError
from bitkd.store.artifacts import PREDICTIONS_FILE, WEIGHTS_FILE

MIB = 2**20


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
        absent += [f"{stage}'s {key}" for key in ("word_tables",) if key not in (data["stage"].get("size") or {})]
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
        if not isinstance(info["seed"], int):
            raise TypeError(f"its seed is {info['seed']!r}")
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
            versions=_versions([data["stage"].get("versions") or {} for data in stages.values()]),
            stages=[
                _read_stage(
                    data,
                    name=stage,
                    title=info["titles"][stage],
                    upstream=dict(info.get("upstream", {}).get(stage, {})),
                    labels=info.get("labels"),
                    in_chain=stage in chain,
                    with_predictions=stage in (teacher, names[-1]),
                )
                for stage, data in stages.items()
            ],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{name}: its manifest is damaged ({type(error).__name__}: {error}); run it again") from error


def _versions(of_stages: list[Mapping[str, str]]) -> dict[str, str]:
    """Each library's version, or versions where stages were made by several."""
    names = dict.fromkeys(name for versions in of_stages for name in versions)
    return {name: ", ".join(sorted({versions[name] for versions in of_stages if name in versions})) for name in names}


def _read_stage(stage: Mapping[str, Any], **given: Any) -> Stage:
    try:
        return _make_stage(stage, **given)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{stage['path']}: its stage.json or metrics.json is damaged ({type(error).__name__}: {error}); delete that folder "
            "and run the stage again"
        ) from error


def _make_stage(
    data: Mapping[str, Any],
    name: str,
    title: str,
    upstream: dict[str, str],
    labels: list[str] | None,
    in_chain: bool,
    with_predictions: bool,
) -> Stage:
    record, metrics, folder = data["stage"], data["metrics"], Path(data["path"])
    is_model = record["kind"] != "augment"
    measured = ("precision", "parameters", "encoder_bits", "paper_mib", "file_mib")
    size, flops = record["size"] if is_model else {}, record.get("flops", {})
    model = folder / WEIGHTS_FILE
    if is_model and not model.is_file():
        raise InputError(f"{folder} is damaged: it has no {model.name}; run the stage again")
    if is_model and (absent := [name for name in measured if name not in size]):
        raise InputError(f"{folder} is damaged: its size has no {', '.join(absent)}; run the stage again")
    file = folder / PREDICTIONS_FILE
    # Without a head there is nothing that it could say, and older versions kept none.
    with_predictions = with_predictions and metrics["score"] is not None and "flops" in record
    return Stage(
        name=name,
        title=title,
        kind=record["kind"],
        key=folder.resolve().name,
        upstream=upstream,
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
