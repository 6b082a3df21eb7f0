"""What a stage's fingerprint depends on, besides its upstream stages."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from bitkd.pipeline.stage import PlannedStage
from bitkd.processes.machine import augmentation_precision
from bitkd.quant.spec import quant_data
from bitkd.sources.sources import Sources
from bitkd.stages.spec import TERMS
from bitkd.store.artifacts import read_artifact

FORMAT = 6
"""Version of what artifacts hold; a change makes every older one stale."""


def identity_of(stage: PlannedStage, sources: Sources) -> dict[str, Any]:
    """Everything that changes a stage's result, except its upstream stages. It has no paths, no loggers, and a worker
    count only for a stream."""
    spec, kind, config = stage.spec, stage.kind, sources.config
    identity: dict[str, Any] = {"format": FORMAT, "kind": kind.name}
    if kind.makes_rows:
        return identity | _augmentation_identity(sources)
    identity |= {"quant": quant_data(spec.quant), "precision": config.trainer.precision}
    if stage.checkpoint is not None:
        return identity | {
            "checkpoint": sources.hash_of(stage.checkpoint),
            "labels": spec.labels,
            **_task_identity(sources),
        }
    if kind.on_corpus:
        identity |= {"data": sources.corpus.hash, "segments": config.data.segments}
        identity |= {"masking": config.data.masking, "streaming": config.data.streaming}
        if config.data.streaming:  # how the stream is divided among readers decides the order of its sequences
            identity |= {"readers": max(1, config.data.num_workers)}
        identity |= {"max_length": config.data.max_length}
    else:
        identity |= _task_identity(sources)
    if kind.reshapes:
        identity |= {"shape": config.student.as_data(), "seed": stage.seed}
        if config.student.width < 1 or config.student.leaves_out:
            identity |= {"importance_rows": config.data.importance_rows}
    if stage.trains:
        settings = _train_identity(stage)
        if "data" not in stage.upstream:
            for name in ("epochs", "max_steps", "eval_every"):
                del settings[name]
            settings |= {"total_steps": stage.total_steps, "eval_every": stage.eval_every}
        elif stage.train.max_steps:
            del settings["epochs"]
        if stage.augmented is not None:
            identity["augmented"] = read_artifact(stage.augmented).stage.checksums
        if config.data.pad_to_max_length and not kind.on_corpus:
            identity["padded_length"] = config.data.max_length
        identity |= {
            "train": settings,
            "select": spec.select,
            "seed": stage.seed,
            "world_size": config.trainer.devices * config.trainer.num_nodes,
            "accumulate": config.trainer.accumulate_grad_batches,
            # The setting and not what `auto` decides: devices are in no fingerprint either.
            "compile": config.trainer.compile,
        }
        if _may_keep_input(stage):
            identity["candidates"] = "with input"
    if kind.distils:
        identity["loss"] = _loss_identity(stage)
        if kind.can_keep_logits(spec.loss, config.task):
            identity["keep_teacher_logits"] = config.trainer.keep_teacher_logits
    return identity


def _may_keep_input(stage: PlannedStage) -> bool:
    """Whether the stage may keep the student that it begins with (see `input_counts`), which stages of older names did not.
    Under a new head it never does, so that teachers keep their names."""
    select = stage.spec.select
    return not stage.has_new_head and (select == "best" or (select == "auto" and stage.kind.keeps_head))


def _train_identity(stage: PlannedStage) -> dict[str, Any]:
    """How a stage is trained. Settings that are newer than FORMAT are left out where they change nothing."""
    settings = asdict(stage.train)
    del settings["max_tokens"]
    if stage.train.optimizer == "adamw":
        del settings["optimizer"]
    if not stage.spec.quant.learns:
        del settings["scales_lr"]
    del settings["warmup_epochs" if stage.train.warmup_epochs is None else "warmup_ratio"]
    return settings


def _loss_identity(stage: PlannedStage) -> dict[str, Any]:
    """The objective's settings without the weights of terms that the stage does not read, and with the names that
    FORMAT was set for."""
    settings = asdict(stage.spec.loss)
    if not settings["mean_over_classes"]:
        del settings["mean_over_classes"]
    if (padding := settings.pop("padding")) == "leave":
        settings["padding"] = padding
    else:
        settings["include_padding"] = padding == "zero"
    if settings["intervention"] is None:
        del settings["intervention"], settings["intervention_share"]
    terms = stage.kind.terms
    extra = {name: weight for name, weight in settings.pop("extra").items() if weight or name in terms}
    unread = set(TERMS) - set(terms)
    found = {name: value for name, value in settings.items() if name not in unread}
    return found | ({"extra": extra} if extra else {})


def _task_identity(sources: Sources) -> dict[str, Any]:
    return {"data": sources.task_fingerprint, "max_length": sources.config.data.max_length}


def _augmentation_identity(sources: Sources) -> dict[str, Any]:
    spec = asdict(sources.config.task.augmentation)
    spec["precision"] = augmentation_precision(sources.config)
    vectors = spec["vectors"]
    for name in ("enabled", "path", "model", "vectors"):
        del spec[name]
    # Only where it is so: the names of other augmented rows stay.
    apart = {"texts": "apart"} if sources.config.task.of_kind.texts_per_row > 1 else {}
    return apart | {
        "spec": spec,
        "rows": sources.training_rows_hash,
        "max_length": sources.config.data.max_length,
        "model": sources.hash_of(sources.augmentation_model),
        "vectors": sources.checksum_of(Path(vectors).expanduser()) if vectors else None,
        "tokenizer": sources.tokenizer_info(sources.model).hash,
    }
