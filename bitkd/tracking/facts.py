"""What wandb is told of a run and its stages."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bitkd.pipeline.plan import Plan
from bitkd.pipeline.stage import PlannedStage
from bitkd.stages.spec import SCORE
from bitkd.tracking.agent import under_agent

STEP = "trainer/global_step"
"""Lightning's name for the axis of all metrics."""


def settings_of_run(plan: Plan) -> dict[str, Any]:
    """The run's settings, under the key `settings`: an agent locks the names of the sweep's parameters, such as `task`
    and `pipeline`."""
    config = plan.config
    names = {} if under_agent() else {"task": config.task.name, "pipeline": config.pipeline.name, "seed": config.seed}
    return names | {"settings": asdict(config)}


def total_steps(stages: Sequence[PlannedStage]) -> int:
    """Optimizer steps of stages together."""
    return sum(stage.total_steps for stage in stages if stage.trains)


def facts_before(stage: PlannedStage) -> dict[str, Any]:
    """Settings of a planned stage."""
    quant = stage.spec.quant
    return {
        "name": stage.name,
        "kind": stage.kind.name,
        "title": stage.title,
        "weight_bits": quant.weight_bits,
        "activation_bits": quant.activation_bits,
        "lr": stage.train.lr,
        "batch_size": stage.train.batch_size,
        "steps": stage.total_steps if stage.trains else 0,
        "seed": stage.seed,
        "key": stage.key,
    }


def facts_after(plan: Plan, stage: PlannedStage) -> dict[str, Any]:
    """Numbers of a finished stage: metrics of every dev set, sizes, and what it cost."""
    artifact = plan.store.load(stage.key)
    record, metrics = artifact.stage, artifact.metrics
    facts: dict[str, Any] = {SCORE: metrics.score}
    for name, values in metrics.sets.items():
        facts |= {f"{name}/{key}": value for key, value in values.items()}
    for section, found in (("size", record.size), ("flops", record.flops)):
        facts |= {f"{section}/{key}": value for key, value in (asdict(found) if found else {}).items()}
    return facts | {"steps": record.steps, "examples": record.examples, "seconds": record.seconds}
