"""Time and memory of a stage, from steps that were measured before. Nothing is modelled: only the steps scale."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bitkd.config.schema import PRETRAINED, micro_batches
from bitkd.data.tasks import TaskSpec
from bitkd.errors import InputError
from bitkd.files import digest, read_json
from bitkd.models.marks import TYPE_PREFIX
from bitkd.pipeline.stage import PlannedStage
from bitkd.quant.spec import quant_data
from bitkd.sources.sources import Sources
from bitkd.store.artifacts import STAGE_FILE, Store
from bitkd.store.records import StageRecord, parse_record

NEWEST = 200
"""How many records of a kind are read at most: planning must be fast in a large store."""


@dataclass(frozen=True)
class Estimate:
    """What a stage is expected to take."""

    seconds: float
    memory_mib: float | None
    """Peak of the first process, as it was measured; None if it was not."""

    device: str
    """Where it was measured."""


def workload_of(stage: PlannedStage, stages: Mapping[str, PlannedStage], sources: Sources) -> str:
    """Hash of what decides the time and the memory of a step, except the device: what is computed, on which rows, with
    models of which sizes. The weights do not count.

    stages: all of the run, by name.
    """
    config, loss = sources.config, stage.spec.loss
    setting = config.trainer.keep_teacher_logits
    rows = sources.corpus if stage.kind.on_corpus else sources.task

    def shape(name: str) -> Any:
        if name == PRETRAINED:
            return _sizes(sources.model)
        made = stages[name]
        if made.checkpoint is not None:
            return _sizes(made.checkpoint)
        return [shape(made.upstream["student"]), *_changes(made)]

    def _changes(made: PlannedStage) -> list[Any]:
        reshaped = config.student.as_data() if made.kind.reshapes else None
        return [reshaped, made.kind.splits, quant_data(made.spec.quant)]

    newer: dict[str, Any] = {
        "task": config.task.kind if config.task.kind != TaskSpec().kind and not stage.kind.on_corpus else None,
        "optimizer": stage.train.optimizer if stage.train.optimizer != "adamw" else None,
        "unclipped": stage.train.gradient_clip == 0 or None,
        "padding": loss.padding if loss.padding != "skip" else None,
        "intervention": loss.intervention,
        "importance_rows": config.data.importance_rows if stage.kind.reshapes and config.student.leaves_out else None,
    }
    others = {name: value for name, value in newer.items() if value is not None}

    return digest(
        [
            stage.kind.name,
            [shape(name) for role, name in sorted(stage.upstream.items()) if role != "data"],
            _changes(stage),
            [stage.kind.active_terms(loss), loss.unmatched_heads, stage.keeps_logits(setting, config.task)],
            [rows.hash, "data" in stage.upstream or stage.augmented is not None, config.data.max_length],
            [
                stage.train.batch_size,
                micro_batches(config.trainer),
                config.trainer.precision,
                config.data.pad_to_max_length,
            ],
            [config.trainer.compile, config.trainer.cuda_graphs],
            [config.trainer.accelerator, config.trainer.devices, config.trainer.num_nodes, config.trainer.strategy],
            *([others] if others else []),
        ]
    )


def _sizes(folder: Any) -> Any:
    """Everything in a model's configuration that may be a size."""
    content = read_json(folder / "config.json")
    content = content if isinstance(content, dict) else {}
    sizes = {name: value for name, value in content.items() if isinstance(value, int)}
    kind = content.get("model_type")
    return sizes | ({"model_type": kind.removeprefix(TYPE_PREFIX)} if isinstance(kind, str) else {})


def estimate_of(
    stage: PlannedStage, stages: Mapping[str, PlannedStage], sources: Sources, store: Store
) -> Estimate | None:
    """Time and memory of the steps that a stage has still to make, by the newest artifact of the same workload.

    None if there is no such artifact, or the stage trains nothing, or its steps are not known yet.
    """
    if not stage.trains or not stage.total_steps or not stage.steps_known:
        return None
    record = _measured(stage.kind.name, workload_of(stage, stages, sources), store)
    if record is None:
        return None
    saved = store.saved_step(stage.key)
    steps = max(0, stage.total_steps - (saved or 0))
    each = (record.seconds - record.seconds_before) / record.steps
    seconds = steps * each + (record.seconds_before if saved is None else 0.0)
    return Estimate(seconds, record.memory_mib, record.device)


def _measured(kind: str, workload: str, store: Store) -> StageRecord | None:
    files = []
    for folder in store.root.glob(f"{kind}-*"):
        with contextlib.suppress(OSError):  # it may be removed at this moment
            files.append(((folder / STAGE_FILE).stat().st_mtime, folder / STAGE_FILE))
    for _, file in sorted(files, reverse=True)[:NEWEST]:
        content = read_json(file)
        if isinstance(content, dict) and content.get("workload") == workload:
            try:
                record = parse_record(StageRecord, file.read_bytes(), file, "run the stage again")
            except (InputError, OSError):  # damaged, of another version, or removed
                continue
            if record.steps and record.seconds > 0:
                return record
    return None
