"""What an artifact remembers of how it was made."""

import datetime
import platform
from dataclasses import asdict
from importlib.metadata import version

import torch

from bitkd.config.schema import PRETRAINED
from bitkd.pipeline.planned import Plan, PlannedStage
from bitkd.store.records import StageRecord


def stage_record(plan: Plan, stage: PlannedStage, seconds: float, examples: int = 0) -> StageRecord:
    """What made this artifact; nothing of it but the fingerprint says whether it can be used again. examples: rows seen."""
    inputs = {role: name if name == PRETRAINED else plan[name].key for role, name in stage.upstream.items()}
    return StageRecord(
        format=1,
        name=stage.name,
        kind=stage.spec.kind,
        title=stage.title,
        task=plan.config.task.name,
        texts=len(plan.config.task.text),
        fingerprint=stage.fingerprint,
        inputs=inputs,
        settings=asdict(stage.spec) | {"train": asdict(stage.train)},
        seed=stage.seed,
        steps=stage.total_steps if stage.trains else 0,
        examples=examples,
        seconds=round(seconds, 2),
        world_size=plan.config.trainer.devices * plan.config.trainer.num_nodes,
        precision=plan.config.trainer.precision,
        device=_device(plan.config.trainer.accelerator),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        versions={name: version(name) for name in ("torch", "lightning", "transformers", "datasets")}
        | {"python": platform.python_version()},
    )


def _device(accelerator: str) -> str:
    """What seconds depend on."""
    if accelerator != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"{platform.machine()} with {threads} thread{'' if threads == 1 else 's'}"
