"""Runs a graph: skip what is finished, resume what was cut, recompute what has changed, keep what is done."""

import traceback
from dataclasses import dataclass
from typing import Any

import torch

from bitkd.config.comparable import decisive_settings, hyperparameters
from bitkd.config.load import to_yaml
from bitkd.config.schema import Config
from bitkd.errors import StoppedError
from bitkd.pipeline.augmentation import augment
from bitkd.pipeline.execute import execute
from bitkd.pipeline.plan import make_plan
from bitkd.pipeline.planned import Plan, PlannedStage
from bitkd.processes.group import Group
from bitkd.processes.signals import Stopping
from bitkd.stages.kinds import AUGMENT
from bitkd.store.lock import Lock
from bitkd.store.records import BudgetRecord, RunManifest
from bitkd.tracking.wandb import close_loggers, track_run, track_stage

WAIT_SECONDS = 60.0


@dataclass
class StageFailedError(RuntimeError):
    """A stage failed while working: which one, why, and what was not run. Finished stages stay."""

    stage: str
    cause: BaseException
    not_run: list[str]
    log: str

    def __str__(self) -> str:
        rest = f"not run: {', '.join(self.not_run)}" if self.not_run else "it was the last stage"
        return (
            f"stage {self.stage} failed: {type(self.cause).__name__}: {self.cause}{_advice(self.cause)}\n"
            f"{rest}. Finished stages are kept; run the same command again to go on from here. Traceback: {self.log}"
        )


def _advice(cause: BaseException) -> str:
    memory = isinstance(cause, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(cause)
    if not memory:
        return ""
    return "; use more trainer.accumulate_grad_batches (the same batch in smaller parts), or a smaller train.batch_size"


def run(config: Config, console: Any, progress_bar: bool = False) -> Plan:
    """Run the configured graph to its end.

    console: has `print`; one plain line at each stage's start and one at its end.
    Raises InputError before any work starts, StageFailedError while working, StoppedError where it was asked to stop.
    """
    plan = make_plan(config)
    plan.store.prepare()
    names = [stage.name for stage in plan.stages]
    group = Group(plan.config.trainer)
    living = None
    if group.is_global_zero:
        living = _begin(plan, console)
        plan.facts.memo.keep()
    stopping = Stopping()
    stopping.install()
    try:
        for position, stage in enumerate(plan.stages, start=1):
            label = f"stage {position} of {len(names)}: {stage.name}"
            if stage.title != stage.name:
                label += f" ({stage.title})"
            _run_stage(plan, stage, group, stopping, label, console, progress_bar)
        if group.is_global_zero:
            track_run(plan)
    finally:
        stopping.restore()
        if living:
            living.release()
    return plan


def _run_stage(
    plan: Plan, stage: PlannedStage, group: Group, stopping: Stopping, label: str, console: Any, progress_bar: bool
) -> None:
    code = 1
    names = [other.name for other in plan.stages]
    lock = plan.store.lock(stage.key)
    try:
        stopping.check(group.any(stopping.requested))
        finished = not _take(plan, stage, group, lock, label, console)
        if finished:
            _say(group, console, f"{label} is done already")
        else:
            _say(group, console, label)
            if stage.spec.kind == AUGMENT:
                augment(plan, stage, group, stopping, console)
            else:
                execute(plan, stage, group, stopping, label, progress_bar)
        if group.is_global_zero:
            plan.record.finish(stage.name, stage.key, plan.store.path(stage.key), names)
            track_stage(plan, stage)
            if not finished:
                _say(group, console, f"{label} finished: {_summary(plan, stage)}")
        code = 0
    except StoppedError as error:
        code = stopping.code
        told = f"stopped in stage {stage.name} as asked; run the same command again to go on"
        raise StoppedError(told, stopping.code) from error
    except Exception as error:
        raise _failure(plan, stage, group, error, names[names.index(stage.name) + 1 :]) from error
    finally:
        lock.release()
        close_loggers(plan, code)


def _begin(plan: Plan, console: Any) -> Lock:
    """Note what this run is, and say where it goes on in another way than it began. Returns a lock for as long as it lives."""
    config = plan.config
    processes = config.trainer.devices * config.trainer.num_nodes
    before = plan.record.manifest.processes if plan.record.manifest else processes
    manifest = RunManifest(
        task=config.task.name,
        pipeline=config.pipeline.name,
        title=config.pipeline.title,
        seed=config.seed,
        metric=config.task.metric,
        metrics=config.task.metrics,
        labels=config.task.labels,
        processes=processes,
        hyperparameters=hyperparameters(config),
        budget=_budget(config),
        settings=decisive_settings(config) | plan.sources_read(),
        titles={stage.name: stage.title for stage in plan.stages},
        kinds={stage.name: stage.spec.kind for stage in plan.stages},
        upstream={stage.name: stage.upstream for stage in plan.stages},
        planned={stage.name: stage.key for stage in plan.stages},
    )
    plan.record.begin(manifest, to_yaml(config))
    living = plan.store.register(plan.record.folder, [*manifest.planned.values(), *plan.given_keys()])
    if before != processes:
        console.print(
            f"this run had {before} processes until now and has {processes}: stages that train are computed anew, because "
            "sums are rounded in another order"
        )
    parts = config.trainer.accumulate_grad_batches
    if processes * parts > 1:
        sizes = sorted({stage.train.batch_size for stage in plan.stages if stage.trains})
        shares = ", ".join(f"{size} rows = {processes} x {parts} x {size // (processes * parts)}" for size in sizes)
        console.print(f"each optimizer step (processes x accumulated batches x rows): {shares}")
    return living


def _budget(config: Config) -> BudgetRecord | None:
    if config.budget.total is None:
        return None
    unit, total = config.budget.total
    return BudgetRecord(unit, total, dict(config.budget.shares))


def _take(plan: Plan, stage: PlannedStage, group: Group, lock: Lock, label: str, console: Any) -> bool:
    """Whether the stage is ours to compute: False when it is finished, be it by another run that we waited for.

    Rank zero decides. While it waits it tells the others now and then: a collective has a timeout.
    """
    told = False
    while True:
        state = ""
        if group.is_global_zero:
            _drop_damaged(plan, stage, console)
            state = lock.wait(WAIT_SECONDS if told else 0, done=lambda: plan.store.finished(stage.key))
            if state == "done":  # killed between publishing and clearing up
                plan.store.drop_work(stage.key)
            if state == "waiting" and not told:
                told = True
                console.print(f"{label} waits for {lock.holder()}, which computes it")
        state = group.broadcast(state)
        if state != "waiting":
            return state == "held"


def _say(group: Group, console: Any, text: str) -> None:
    if group.is_global_zero:
        console.print(text)


def _drop_damaged(plan: Plan, stage: PlannedStage, console: Any) -> None:
    if not plan.store.path(stage.key).exists():
        return
    damage = plan.store.find_damage(stage.key)
    if damage:
        console.print(f"{damage}: it is recomputed")
        plan.store.remove(stage.key)


def _failure(plan: Plan, stage: PlannedStage, group: Group, error: Exception, rest: list[str]) -> StageFailedError:
    # Each rank has a file of its own: what one rank died of must not be lost under "connection closed" of the others.
    log = plan.record.folder / f"{stage.name}.error{'' if group.is_global_zero else f'.rank{group.rank}'}.txt"
    try:
        log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError:  # a full disk must not hide the failure itself
        return StageFailedError(stage.name, error, rest, "could not be written")
    return StageFailedError(stage.name, error, rest, str(log))


def _summary(plan: Plan, stage: PlannedStage) -> str:
    artifact = plan.store.load(stage.key)
    if stage.spec.kind == AUGMENT:
        facts = artifact.stage.augmented
        assert facts
        return f"{facts.rows} rows of {facts.sources}, {artifact.stage.seconds:.0f} s"
    score = artifact.metrics.score
    metric = plan.config.task.metric
    return (f"{metric} {score:.4f}, " if score is not None else "") + f"{artifact.stage.seconds:.0f} s"
