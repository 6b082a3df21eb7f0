"""What an artifact remembers of how it was made."""

import datetime
import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch

from bitkd.config.schema import PRETRAINED
from bitkd.pipeline.plan import Plan
from bitkd.pipeline.planned import PlannedStage


def stage_record(plan: Plan, stage: PlannedStage, seconds: float) -> dict[str, Any]:
    """What made this artifact; nothing of it but the fingerprint says whether it can be used again."""
    inputs = {role: name if name == PRETRAINED else plan[name].key for role, name in stage.upstream.items()}
    return {
        "format": 1,
        "name": stage.name,
        "kind": stage.spec.kind,
        "title": stage.title,
        "task": plan.config.task.name,
        "texts": len(plan.config.task.text),
        "fingerprint": stage.fingerprint,
        "inputs": inputs,
        "settings": asdict(stage.spec) | {"train": asdict(stage.train)},
        "seed": stage.seed,
        "steps": stage.total_steps if stage.trains else 0,
        "examples": stage.total_steps * stage.train.batch_size if stage.trains else 0,
        "seconds": round(seconds, 2),
        "world_size": plan.config.trainer.devices * plan.config.trainer.num_nodes,
        "precision": plan.config.trainer.precision,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in ("torch", "lightning", "transformers", "datasets")}
        | {"python": platform.python_version()},
    }
