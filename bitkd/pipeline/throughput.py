"""How long a step of each stage takes on one device: measured by earlier runs, read by a budget in seconds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bitkd.config.schema import BudgetSpec
from bitkd.errors import InputError
from bitkd.pipeline.budget import StageCost
from bitkd.pipeline.estimate import workload_of
from bitkd.pipeline.stage import PlannedStage
from bitkd.sources.sources import Sources
from bitkd.stages.kinds import kind_of
from bitkd.store.records import StageRecord, parse_record

FORMAT = 1


@dataclass(frozen=True)
class StepTime:
    """The time of one workload, see `bitkd.pipeline.estimate.workload_of`; medians over the artifacts that were measured."""

    title: str
    """Of the stage."""

    workload: str
    seconds_per_step: float
    """Of training alone; 0 for a stage that trains nothing."""

    seconds_before: float
    """Of what is done once, before the first step: estimating importance, computing the teacher's logits, compiling."""

    steps: int
    """Of all artifacts that were measured."""

    artifacts: int
    slowest: float
    """The largest seconds per step over the smallest; 1 for one artifact."""


@dataclass(frozen=True)
class Throughput:
    """The file that `budget.throughput` names."""

    format: int
    device: str
    stages: list[StepTime]


def measured(records: Sequence[StageRecord], device: str | None = None) -> Throughput:
    """The throughput of stages that were trained on one device.

    records: those without a workload are left out, and fine-tuned models, which no budget pays for.
    device: a name for it; None takes the one that the records have.
    Raises InputError if nothing was trained, or on several devices, or by a version that did not measure the training alone.
    """
    workloads: dict[str, list[StageRecord]] = {}
    for record in records:
        if record.workload is not None and not kind_of(record.kind).fine_tunes:
            if record.validation_seconds is None or record.saving_seconds is None:
                raise InputError(
                    f"{record.title} ({record.kind}-{record.fingerprint}) was trained by a version that did not measure "
                    "validations apart; train it again in an empty run.dir"
                )
            workloads.setdefault(record.workload, []).append(record)
    found = sorted({record.device for same in workloads.values() for record in same})
    if not found:
        raise InputError("nothing was trained in these runs; name runs that trained the stages to be timed")
    if len(found) > 1:
        raise InputError(f"these runs trained on {' and on '.join(found)}; name the runs of one device")
    return Throughput(FORMAT, device or found[0], [_step_time(same) for same in workloads.values()])


def _step_time(same: list[StageRecord]) -> StepTime:
    each = [_training_seconds(record) / record.steps if record.steps else 0.0 for record in same]
    return StepTime(
        title=same[0].title,
        workload=str(same[0].workload),
        seconds_per_step=median(each),
        seconds_before=median(record.seconds_before for record in same),
        steps=sum(record.steps for record in same),
        artifacts=len(same),
        slowest=max(each) / min(each) if min(each) > 0 else 1.0,
    )


def _training_seconds(record: StageRecord) -> float:
    """Of the steps alone."""
    apart = record.seconds_before + (record.validation_seconds or 0.0) + (record.saving_seconds or 0.0)
    return max(0.0, record.seconds - apart)


def read_throughput(budget: BudgetSpec) -> Throughput | None:
    """The file of a budget in seconds; None for another budget. Raises InputError if it is missing or damaged."""
    if budget.seconds is None or budget.throughput is None:
        return None
    file = Path(budget.throughput).expanduser()
    advice = "name a file that `bitkd throughput RUN… --out FILE` wrote"
    try:
        text = file.read_bytes()
    except OSError as error:
        raise InputError(f"budget.throughput={file} cannot be read ({error.strerror}); {advice}") from error
    found = parse_record(Throughput, text, f"budget.throughput={file}", advice)
    times = [value for time in found.stages for value in (time.seconds_per_step, time.seconds_before)]
    if found.format != FORMAT or not found.device or not all(0 <= value < math.inf for value in times):
        raise InputError(
            f"budget.throughput={file} is of another version, names no device, or has a time that is none; {advice}"
        )
    return found


def stage_seconds(stages: Sequence[PlannedStage], sources: Sources, throughput: Throughput) -> dict[str, StageCost]:
    """Seconds of every stage that the budget pays for. Raises InputError if one was not measured."""
    config = sources.config
    times = {time.workload: time for time in throughput.stages}
    by_name = {stage.name: stage for stage in stages}
    costs, missing = {}, []
    for stage in stages:
        shared = stage.name in config.budget.given_shares
        if not shared and (stage.trains or not stage.kind.reshapes):
            continue
        time = times.get(workload_of(stage, by_name, sources))
        if time is not None and (time.seconds_per_step > 0 or not shared):
            costs[stage.name] = StageCost(time.seconds_per_step, time.seconds_before)
        elif shared or config.student.leaves_out:
            missing.append(stage.name)
    if missing:
        raise InputError(
            f"{config.budget.throughput} has no time of a step of {', '.join(missing)} with these settings. Train this pipeline "
            f"for a few steps on {throughput.device} (budget.steps= in place of budget.seconds=) with the same models, rows, "
            "length, batch, precision and trainer.*, and give that run to `bitkd throughput` as well"
        )
    return costs
