"""The record of how an artifact was made."""

import datetime
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from bitkd.config.schema import PRETRAINED, Config
from bitkd.pipeline.context import StageContext
from bitkd.sources.locations import demo_folder
from bitkd.store.records import StageRecord, TaskRecord


def stage_record(context: StageContext, seconds: float, **facts: Any) -> StageRecord:
    """The record of the stage's artifact.  facts: further fields of StageRecord, as far as the kind has them."""
    plan, stage, config = context.plan, context.stage, context.config
    return StageRecord(
        format=2,
        name=stage.name,
        kind=stage.kind.name,
        title=stage.title,
        task=config.task.name,
        texts=len(config.task.text),
        fingerprint=stage.fingerprint,
        inputs={role: name if name == PRETRAINED else plan[name].key for role, name in stage.upstream.items()},
        settings=asdict(stage.spec) | {"train": asdict(stage.train)},
        seed=stage.seed,
        steps=stage.total_steps if stage.trains else 0,
        seconds=round(seconds, 2),
        world_size=config.trainer.devices * config.trainer.num_nodes,
        precision=config.trainer.precision,
        device=_device(config.trainer.accelerator),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        versions={name: version(name) for name in ("torch", "lightning", "transformers", "datasets")}
        | {"python": platform.python_version()},
        **{"examples": 0, **facts},
    )


def task_record(config: Config) -> TaskRecord:
    """What a classifier that this run trains must know about its task."""
    definition = asdict(config.task)
    del definition["augmentation"]  # it changes only the training rows, and may hold paths
    source: Literal["demo", "files", "hub"] = "hub"
    if config.data.dir is not None:
        source = "demo" if Path(config.data.dir).is_relative_to(demo_folder(config)) else "files"
    return TaskRecord(definition, config.data.max_length, source)


def _device(accelerator: str) -> str:
    """The device, so that seconds can be compared."""
    if accelerator != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"{platform.machine()} with {threads} thread{'' if threads == 1 else 's'}"
