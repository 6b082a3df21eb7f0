"""Runs one stage with Lightning: fits or validates, resumes a stopped fit, chooses a checkpoint, writes the artifact."""

import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger, Logger

from bitkd.callbacks.checkpoints import BestCheckpoint, ResumeCheckpoint, latest_checkpoint
from bitkd.callbacks.flops import TrainingFlops
from bitkd.callbacks.predictions import Predictions
from bitkd.callbacks.progress import Progress
from bitkd.callbacks.random_states import RandomStates
from bitkd.callbacks.seconds import TrainingSeconds
from bitkd.callbacks.stop import StopRequest, ValidateLastStep
from bitkd.callbacks.throughput import Throughput
from bitkd.config.schema import cache_root
from bitkd.data.batches import LoaderSpec
from bitkd.data.metrics import primary_score
from bitkd.data.tasks import HOLDOUT, TaskSpec
from bitkd.models.artifact import save_student
from bitkd.models.size import measure
from bitkd.pipeline.build import build_module, finish_student, input_counts, selection
from bitkd.pipeline.calibration import calibrate_student
from bitkd.pipeline.context import StageContext
from bitkd.pipeline.estimate import workload_of
from bitkd.pipeline.importance import ImportanceEstimate
from bitkd.pipeline.stage_record import stage_record, task_record
from bitkd.pipeline.teacher_logits import KeptLogits, teacher_logits
from bitkd.processes.group import make_trainer
from bitkd.processes.memory import peak_mib, reset_peak
from bitkd.processes.signals import Stopping
from bitkd.stages.base import StudentModule
from bitkd.stages.compiling import CACHE, compilation, compiler_problem, should_compile
from bitkd.stages.cuda_graphs import should_record
from bitkd.stages.distillation import DistillationModule
from bitkd.stages.flops import row_flops
from bitkd.stages.spec import SCORE, TERMS
from bitkd.store.records import FlopsRecord, MetricsRecord


def execute(context: StageContext) -> None:
    """Run a stage that makes a student, on all ranks, and publish its artifact.

    Every rank builds the same model from the same seed, so nothing needs to be sent.
    """
    stage, group = context.stage, context.group
    if stage.trains and not stage.steps_known:
        raise FileNotFoundError(f"{context.plan.augmented_rows(stage)} cannot be seen by this process, or has no rows")
    reset_peak(group.device)
    pl.seed_everything(stage.seed, verbose=False)
    importance = ImportanceEstimate(stage, context.sources)
    module = build_module(stage, context.sources, context.load, importance)
    calibrate_student(stage, context.sources, module.student)
    data, loggers = _data_module(context), _loggers(context)
    metric = context.config.task.metric if stage.kind.keeps_head else None
    progress = Progress(context.console, context.place, metric, context.progress_bar and group.is_global_zero)
    make = _fit if stage.trains else _leave
    fitted = make(context, module, importance, data, progress, loggers)
    values, predictions = _validate(context, module, data, progress)
    _publish(context, module, fitted, values, predictions, loggers)
    group.barrier()


def _fit(
    context: StageContext,
    module: StudentModule,
    importance: ImportanceEstimate,
    data: pl.LightningDataModule,
    progress: Progress,
    loggers: list[Logger],
) -> dict[str, Any]:
    """Train the module, from its last checkpoint if it has one, and choose its weights.

    Returns what StageRecord says of a fit.
    """
    stage = context.stage
    selected = selection(stage, module.student)
    kept = _keep_logits(context, module)
    best = BestCheckpoint(context.work, SCORE, selected == "best" and input_counts(stage, module.student))
    flops = TrainingFlops(row_flops, kept.rows if kept else None)
    seconds = TrainingSeconds(importance.seconds + (kept.seconds if kept else 0.0))
    callbacks: list[pl.Callback] = [KeepSignals(context.stopping), progress, flops, seconds]
    compiler = None
    with ExitStack() as stack:
        if _compiles(context, module):  # after `flops`, which runs the module under a dispatch mode
            cache = None if context.group.device == "cpu" else cache_root(context.config) / CACHE
            compiler = stack.enter_context(compilation(cache))
            callbacks.append(compiler)
        if _records(context, module, context.config.trainer.cuda_graphs):
            stack.enter_context(module.recorded(context.group.device))
        trainer = _trainer(context, [*callbacks, *_resumption(context, best)], loggers)
        stack.enter_context(progress.shown())
        trainer.fit(module, datamodule=data, ckpt_path=_last_checkpoint(context), weights_only=True)
    if selected == "best" and best.score is not None:
        best.load_into(module)
    return {
        **seconds.facts,
        "seconds_before": round(seconds.before + (compiler.seconds if compiler else 0.0), 2),
        "examples": flops.examples,
        "padded_tokens": flops.padded_tokens,
        "tokens": flops.tokens,
        "flops": FlopsRecord(flops.student, flops.teacher, importance.flops),
        "curve": [(int(step), score) for step, score in best.curve],
        "selected": selected,
        "selected_step": best.step if selected == "best" else trainer.global_step,
        "selection_rows": context.sources.task.rows.get(module.dev_names[0]) if selected == "best" else None,
        "workload": workload_of(stage, context.plan.by_name, context.sources),
    }


def _leave(context: StageContext, module: StudentModule, importance: ImportanceEstimate, *_: Any) -> dict[str, Any]:
    """The same of a stage without steps."""
    return {
        **TrainingSeconds(importance.seconds).facts,
        "seconds_before": round(importance.seconds, 2),
        "workload": workload_of(context.stage, context.plan.by_name, context.sources) if importance.flops else None,
        "padded_tokens": 0,
        "tokens": 0,
        "flops": FlopsRecord(0, 0, importance.flops),
    }


def _validate(
    context: StageContext, module: StudentModule, data: pl.LightningDataModule, progress: Progress
) -> tuple[dict[str, float], Predictions]:
    """The metrics of the artifact, measured on the weights that it holds, not taken from the log of the training."""
    predictions = Predictions(module.dev_names)
    trainer = make_trainer(
        context.config.trainer,
        logger=False,
        callbacks=[KeepSignals(context.stopping), progress, *([predictions] if context.stage.kind.keeps_head else [])],
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    with progress.shown():
        trainer.validate(module, datamodule=data, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items() if "/" in name}, predictions


def _publish(
    context: StageContext,
    module: StudentModule,
    fitted: dict[str, Any],
    values: dict[str, float],
    predictions: Predictions,
    loggers: list[Logger],
) -> None:
    """Write the artifact: the student, its metrics, and its record with what is known of the fit."""
    stage, has_head = context.stage, context.stage.kind.keeps_head
    memory = peak_mib(context.group.device)
    student = finish_student(stage, module)
    record = stage_record(
        context,
        size=measure(student),
        trained_for=task_record(context.config) if has_head else None,
        memory_mib=memory and round(memory, 1),
        **fitted,
    )
    score = _dev_score(context.config.task, module.dev_names, values) if has_head else None
    metrics = MetricsRecord(score, {name: _section(values, name) for name in module.dev_names})

    def write(folder: Path) -> None:
        save_student(student, folder, context.sources.tokenizer)
        if has_head:
            predictions.save(folder)

    if context.group.is_global_zero:
        context.store.publish(stage.key, write, record, metrics)
        for logger in loggers:
            logger.log_metrics({f"final/{name}": value for name, value in values.items()}, step=stage.total_steps)
            logger.finalize("success")


def _keep_logits(context: StageContext, module: StudentModule) -> KeptLogits | None:
    """Give a stage that reads nothing else of its teacher the teacher's logits of all rows; None if it runs the teacher."""
    trainer = context.config.trainer
    if not isinstance(module, DistillationModule) or not module.can_keep_logits:
        return None
    if not context.stage.keeps_logits(trainer.keep_teacher_logits, context.config.task):
        return None
    # The rows are read in the precision and on the device of the fit.
    kept = teacher_logits(context, module, make_trainer(trainer, logger=False, enable_checkpointing=False))
    module.keep_logits(kept.logits)
    return kept


class KeepSignals(pl.Callback):
    """Takes the signals back from Lightning, which installs its own handlers before it trains or validates."""

    def __init__(self, stopping: Stopping) -> None:
        self.stopping = stopping

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stopping.install()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stopping.install()


def _compiles(context: StageContext, module: StudentModule) -> bool:
    """Whether the fit's steps are compiled, the same on all ranks."""
    setting, group = context.config.trainer.compile, context.group
    recorded = _records(context, module, "auto")
    if not should_compile(setting, group.device, context.stage.total_steps, recorded):
        return False
    problem = compiler_problem(group.device)
    if problem:
        context.say(f"note: the steps are not compiled, because {problem}")
    if group.any(problem is not None):
        return False
    context.say(f"{context.stage.name}: the first step compiles the encoder layers, and takes longer than the others")
    return True


def _records(context: StageContext, module: StudentModule, setting: str) -> bool:
    """Whether the fit's steps are recorded as CUDA graphs, with this value of `trainer.cuda_graphs`."""
    group = context.group
    return should_record(setting, group.device, group.world_size, module.code())


def _data_module(context: StageContext) -> pl.LightningDataModule:
    stage, data, sources = context.stage, context.config.data, context.sources
    accumulate = context.config.trainer.accumulate_grad_batches
    loader = LoaderSpec(
        batch_size=stage.train.batch_size,
        total_batches=stage.total_steps * accumulate,
        accumulate=accumulate,
        seed=stage.seed,
        eval_batch_size=data.eval_batch_size,
        num_workers=data.num_workers,
        padded_length=data.max_length if data.pad_to_max_length and not stage.kind.on_corpus else None,
    )
    if stage.kind.on_corpus:
        return sources.corpus_module(loader)
    return sources.task_module(loader, context.plan.augmented_rows(stage))


def _loggers(context: StageContext) -> list[Logger]:
    """Loggers of the stage, on rank zero. A resumed stage adds a version_N folder, so that nothing logged before is lost."""
    if not context.group.is_global_zero:
        return []
    plan, stage = context.plan, context.stage
    return [CSVLogger(plan.folder.logs, name=stage.name), *context.observer.loggers(plan, stage)]


def _resumption(context: StageContext, best: BestCheckpoint) -> list[pl.Callback]:
    """The callbacks with which a resumed fit ends like an uninterrupted one. `best` comes before `resume`, which saves it."""
    intervals = context.config.checkpoint
    resume = ResumeCheckpoint(context.work, intervals.every_minutes, intervals.every_steps)
    stop = StopRequest(lambda: context.stopping.requested, resume.save)
    return [RandomStates(context.stage.seed), ValidateLastStep(), best, resume, stop]


def _last_checkpoint(context: StageContext) -> Path | None:
    """The checkpoint to resume the stage from, the same on all ranks; None if there is none."""
    checkpoint: Path | None = None
    if context.group.is_global_zero:
        context.work.mkdir(parents=True, exist_ok=True)
        checkpoint = latest_checkpoint(context.work)
    return context.group.broadcast(checkpoint)


def _trainer(context: StageContext, callbacks: list[pl.Callback], loggers: list[Logger]) -> pl.Trainer:
    """The Trainer of the stage's fit."""
    spec, stage = context.config.trainer, context.stage
    active = stage.kind.active_terms(stage.spec.loss)
    unused = set(stage.kind.terms) - set(active) or (
        active and not any(TERMS[name].reads_last_layer for name in active)
    )
    return make_trainer(
        spec,
        find_unused_parameters=bool(unused),
        # Other ranks get a logger too, but Lightning lets only rank zero write.
        logger=loggers or CSVLogger(context.plan.folder.logs, name="unused"),
        callbacks=[Throughput(), LearningRateMonitor("step"), *callbacks],
        enable_progress_bar=False,
        max_steps=stage.total_steps,
        max_epochs=1,
        min_epochs=0,
        val_check_interval=stage.eval_every * spec.accumulate_grad_batches,
        check_val_every_n_epoch=None,
        accumulate_grad_batches=spec.accumulate_grad_batches,
        gradient_clip_val=stage.train.gradient_clip or None,
        log_every_n_steps=spec.log_every_n_steps,
    )


def _dev_score(task: TaskSpec, dev_names: list[str], values: dict[str, float]) -> float:
    """The primary metric on the first dev set, whichever set chose the checkpoint."""
    prefix = f"{next(name for name in dev_names if name != HOLDOUT)}/"
    return primary_score(
        task, {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
    )


def _section(values: dict[str, float], name: str) -> dict[str, float | None]:
    """One dev set's metrics; None for one that is undefined (Pearson's, if all predictions are equal)."""
    section = {
        key[len(name) + 1 :]: value for key, value in values.items() if key.startswith(f"{name}/") and key != SCORE
    }
    return {key: value if math.isfinite(value) else None for key, value in section.items()}
