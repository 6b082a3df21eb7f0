"""Runs a graph: skips finished stages, resumes stopped ones, recomputes those whose settings or inputs changed."""

import contextlib
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from bitkd.compare.load import load_run
from bitkd.compare.notes import notes_of
from bitkd.config.comparable import hyperparameters, result_settings
from bitkd.config.load import to_yaml
from bitkd.config.schema import Config
from bitkd.errors import InputError, StoppedError
from bitkd.files import write_file
from bitkd.pipeline.augmentation import augment
from bitkd.pipeline.context import Console, StageContext
from bitkd.pipeline.execute import execute
from bitkd.pipeline.observer import Observer
from bitkd.pipeline.plan import Plan, make_plan
from bitkd.pipeline.replaced import replaced_by
from bitkd.pipeline.study import study_notes, study_text
from bitkd.processes.group import Group
from bitkd.processes.machine import note_emulation
from bitkd.processes.signals import Stopping, exit_if_parent_is_gone
from bitkd.report.numbers import time_text
from bitkd.stages.spec import TERMS, resolve
from bitkd.store.lock import Lock
from bitkd.store.records import BudgetRecord, RunManifest

WAIT_SECONDS = 60.0


@dataclass
class StageFailedError(RuntimeError):
    """A stage failed: which one, why, and which stages were not run. Finished stages are kept."""

    stage: str
    cause: BaseException
    not_run: list[str]
    log: str

    def __str__(self) -> str:
        rest = f"not run: {', '.join(self.not_run)}" if self.not_run else "it was the last stage"
        return (
            f"stage {self.stage} failed: {type(self.cause).__name__}: {self.cause}{_advice(self.cause)}\n"
            f"{rest}. Finished stages are kept; run the same command again to continue from here. Traceback: {self.log}"
        )


def _advice(cause: BaseException) -> str:
    memory = isinstance(cause, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(cause)
    if not memory:
        return ""
    return (
        "; use more trainer.accumulate_grad_batches (the same batch in smaller parts), or a smaller train.batch_size; on a GPU, "
        "trainer.cuda_graphs=false takes less memory, too"
    )


def run(config: Config, console: Console, observer: Observer | None = None, progress_bar: bool = False) -> Plan:
    """Run the configured graph to its end.

    console: gets one plain line at each stage's start and one at its end.  observer: watches the stages, on rank zero.
    progress_bar: draw a line that changes; `console` is then rich's, of a terminal that can (`is_interactive`).
    Raises InputError before any work starts, StageFailedError while working, StoppedError if it was asked to stop.
    """
    plan = make_plan(config)
    _check_code(plan)
    plan.store.prepare()
    group, stopping = Group(plan.config.trainer), Stopping()
    observer = observer or Observer()
    observer.run_started(stopping)
    if group.is_global_zero:
        note_emulation(plan.config)
    stopping.install()
    try:
        with _registered(plan, group, console):
            for name in [stage.name for stage in plan.stages]:
                plan = plan.with_known_rows()
                context = StageContext(plan, plan[name], group, stopping, console, observer, progress_bar)
                _run_stage(context)
            group.barrier()  # rank zero has written the last link and the manifest
            if group.is_global_zero:
                observer.run_finished(plan)
                _say_notes(plan, console)
    finally:
        stopping.restore()
    return plan


def _check_code(plan: Plan) -> None:
    """Import what the stages' kinds and loss terms name: an error must not come hours later."""
    for stage in plan.stages:
        if not stage.kind.makes_rows:
            _ = stage.kind.module_class
        for term in stage.kind.active_terms(stage.spec.loss):
            resolve(TERMS[term].function, f"loss term {term}")


def _run_stage(context: StageContext) -> None:
    stage, group, label, code = context.stage, context.group, context.label, 1
    lock = context.store.lock(stage.key)
    try:
        context.stopping.check(group.any(context.stopping.requested))
        finished = not _acquire(context, lock)
        context.say(f"{label} is done already" if finished else label)
        if not finished:
            (augment if stage.kind.makes_rows else execute)(context)
        if group.is_global_zero:
            names = [other.name for other in context.plan.stages]
            context.plan.folder.finish(stage.name, stage.key, context.store.path(stage.key), names)
            context.observer.stage_finished(context.plan, stage)
            if not finished:
                context.say(f"{context.place} finished: {_summary(context)}")
        code = 0
    except StoppedError as error:
        code = context.stopping.code
        raise StoppedError(f"stopped in stage {stage.name}; run the same command again to continue", code) from error
    except Exception as error:
        raise _failure(context, error) from error
    finally:
        lock.release()
        if group.is_global_zero:
            context.observer.stage_left(context.plan, code)


@contextmanager
def _registered(plan: Plan, group: Group, console: Console) -> Iterator[None]:
    """Write the run's manifest, and register the run in the store while it is active."""
    if not group.is_global_zero:
        yield
        return
    before = plan.folder.manifest
    manifest = _manifest(plan)
    for note in study_notes(plan.config):
        console.print(f"note: {note}")
    if plan.study is not None:
        console.print(study_text(plan.study, began=True))
    if replaced := replaced_by(plan):
        console.print(f"note: {replaced.note(plan.folder.folder.name)}")
    plan.folder.begin(manifest, to_yaml(plan.config))
    registration = plan.store.register(plan.folder.folder, [*manifest.planned.values(), *plan.given_keys()])
    plan.sources.cache.save()
    if before is not None and before.processes != manifest.processes:
        console.print(
            f"this run had {before.processes} processes until now and has {manifest.processes}: stages that train are "
            "computed anew, because sums are rounded in another order"
        )
    parts = plan.config.trainer.accumulate_grad_batches
    if manifest.processes * parts > 1:
        sizes = sorted({stage.train.batch_size for stage in plan.stages if stage.trains})
        factor = f"{manifest.processes} x {parts}"
        shares = ", ".join(f"{size} rows = {factor} x {size // (manifest.processes * parts)}" for size in sizes)
        console.print(f"each optimizer step (processes x accumulated batches x rows): {shares}")
    try:
        yield
    finally:
        registration.release()


def _manifest(plan: Plan) -> RunManifest:
    config, stages = plan.config, plan.stages
    total, throughput = config.budget.total, plan.throughput
    return RunManifest(
        task=config.task.name,
        pipeline=config.pipeline.name,
        title=config.pipeline.title,
        seed=config.seed,
        metric=config.task.metric,
        metrics=config.task.metrics,
        labels=config.task.classes,
        processes=config.trainer.devices * config.trainer.num_nodes,
        hyperparameters=hyperparameters(config),
        budget=BudgetRecord(*total, config.budget.shares, throughput.device if throughput else None) if total else None,
        settings=result_settings(config) | plan.content_read(),
        titles={stage.name: stage.title for stage in stages},
        kinds={stage.name: stage.kind.name for stage in stages},
        upstream={stage.name: stage.upstream for stage in stages},
        planned={stage.name: stage.key for stage in stages},
        study=plan.study,
    )


def _say_notes(plan: Plan, console: Console) -> None:
    with contextlib.suppress(InputError):  # an artifact of an older version says less
        for note in notes_of(load_run(plan.folder.folder)):
            console.print(f"note: {note}")


def _acquire(context: StageContext, lock: Lock) -> bool:
    """Get the lock of a stage. Returns False if the stage is finished, perhaps by another run that we waited for.

    Rank zero decides. While it waits, it broadcasts from time to time, because a collective has a timeout.
    """
    announced = False
    while True:
        state = ""
        if context.group.is_global_zero:
            _drop_damaged(context)
            state = lock.wait(WAIT_SECONDS if announced else 0, done=lambda: context.finished)
            if state == "done":  # its process may have been killed before it deleted the checkpoints
                context.store.drop_work(context.stage.key)
            if state == "waiting" and not announced:
                announced = True
                context.say(f"{context.label} waits for {lock.holder()}, which computes it")
        state = context.group.broadcast(state)
        if state != "waiting":
            return state == "held"


def _drop_damaged(context: StageContext) -> None:
    store, key = context.store, context.stage.key
    if store.path(key).exists() and (damage := store.find_damage(key)):
        context.say(f"{damage}: it is recomputed")
        store.remove(key)


def _failure(context: StageContext, error: Exception) -> StageFailedError:
    exit_if_parent_is_gone()
    names, group = [stage.name for stage in context.plan.stages], context.group
    stage, rest = context.stage.name, names[names.index(context.stage.name) + 1 :]
    # One file per rank: the error of one rank must not be overwritten by "connection closed" of the others.
    suffix = "" if group.is_global_zero else f".rank{group.rank}"
    log = context.plan.folder.folder / f"{stage}.error{suffix}.txt"
    try:
        write_file(log, "".join(traceback.format_exception(error)))
    except OSError:  # a full disk must not hide the failure itself
        return StageFailedError(stage, error, rest, "could not be written")
    return StageFailedError(stage, error, rest, str(log))


def _summary(context: StageContext) -> str:
    artifact = context.store.load(context.stage.key)
    rows, score = artifact.stage.augmented, artifact.metrics.score
    parts = [f"{rows.rows} rows of {rows.sources}"] if rows else []
    if score is not None:
        parts.append(f"{context.config.task.metric} {score:.4f}")
    elif loss := [values["loss"] for values in artifact.metrics.sets.values() if values.get("loss") is not None]:
        parts.append(f"dev loss {loss[0]:.4f}")
    if artifact.stage.steps:
        parts.append(f"{artifact.stage.steps} steps")
    if artifact.stage.selected == "best" and artifact.stage.selected_step == 0:
        parts.append("none of which was better than the student that it got, which is kept")
    return ", ".join([*parts, time_text(artifact.stage.seconds)])
