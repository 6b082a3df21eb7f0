"""One stage under Lightning: fit or validate, resume where it was cut, choose a checkpoint, write the artifact."""

import math
from dataclasses import asdict, replace
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger, Logger

from bitkd.callbacks.checkpoints import BestCheckpoint, ResumeCheckpoint, latest_checkpoint
from bitkd.callbacks.flops import TrainingFlops
from bitkd.callbacks.predictions import Predictions
from bitkd.callbacks.progress import StageProgressBar
from bitkd.callbacks.random_states import RandomStates
from bitkd.callbacks.seconds import TrainingSeconds
from bitkd.callbacks.stop import StopRequest, ValidateLastStep
from bitkd.callbacks.throughput import Throughput
from bitkd.data.metrics import primary_score
from bitkd.data.tasks import HOLDOUT
from bitkd.models.artifact import save_student
from bitkd.models.size import measure
from bitkd.pipeline.build import BuiltStage, build_stage, finish_student, load_weights
from bitkd.pipeline.planned import Plan, PlannedStage
from bitkd.pipeline.stage_record import stage_record
from bitkd.processes.group import Group, make_trainer
from bitkd.processes.signals import Stopping
from bitkd.stages.base import SCORE
from bitkd.stages.flops import row_flops
from bitkd.store.records import FlopsRecord, MetricsRecord, SizeRecord
from bitkd.tracking.wandb import make_loggers


def execute(
    plan: Plan, stage: PlannedStage, group: Group, stopping: Stopping, position: str, progress_bar: bool
) -> None:
    """Run one stage to its artifact, on all ranks. `position`: "stage 2 of 8: Stage-I KD"."""
    plan.settle(stage)
    built = build_stage(plan, stage)
    work = plan.store.work(stage.key)
    loggers = make_loggers(plan, stage) if group.is_global_zero else []
    best = BestCheckpoint(work, SCORE)
    flops = TrainingFlops(row_flops)
    intervals = plan.config.checkpoint
    resume = ResumeCheckpoint(work, intervals.every_minutes, intervals.every_steps)
    seconds = TrainingSeconds()
    kept: list[pl.Callback] = [flops, seconds, RandomStates(stage.seed), ValidateLastStep(), best, resume]
    kept.append(StopRequest(lambda: stopping.requested, resume.save))
    built.callbacks.append(KeepSignals(stopping))
    if built.fit:
        trainer = _fit(plan, stage, group, built, kept, loggers, position, progress_bar)
        if built.select == "best" and best.score is not None:
            load_weights(built.module, best.file)
    # The artifact's own metrics come from the very weights that it holds, not from a log of the way there.
    has_head = stage.spec.kind != "general"
    predictions = Predictions(built.module.dev_names)
    checker = make_trainer(
        plan.config.trainer,
        logger=False,
        callbacks=[*built.callbacks, predictions] if has_head else built.callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    checker.validate(built.module, datamodule=built.data, verbose=False)
    values = {name: float(value) for name, value in checker.callback_metrics.items() if "/" in name}
    student = finish_student(stage, built.module)
    metrics = MetricsRecord(
        score=_dev_score(plan, built, values) if has_head else None,
        sets={name: _section(values, name) for name in built.module.dev_names},
    )
    record = replace(
        stage_record(plan, stage, seconds.seconds if built.fit else 0.0, flops.examples),
        size=SizeRecord(**asdict(measure(student))),
        selected=built.select if built.fit else None,
        curve=[(int(step), score) for step, score in best.curve],
        flops=FlopsRecord(flops.student, flops.teacher),
        selected_step=(best.step if built.select == "best" else trainer.global_step) if built.fit else None,
    )
    if group.is_global_zero:

        def write(folder: Path) -> None:
            save_student(student, folder, plan.sources.tokenizer)
            if has_head:
                predictions.save(folder)

        plan.store.publish(stage.key, write, record, metrics)
        for logger in loggers:
            logger.log_metrics({f"final/{name}": value for name, value in values.items()}, step=stage.total_steps)
            logger.finalize("success")
    group.barrier()


class KeepSignals(pl.Callback):
    """Takes the signals back from Lightning, which puts its own handlers there before it trains or validates."""

    def __init__(self, stopping: Stopping) -> None:
        self.stopping = stopping

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stopping.install()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stopping.install()


def _fit(
    plan: Plan,
    stage: PlannedStage,
    group: Group,
    built: BuiltStage,
    kept: list[pl.Callback],
    loggers: list[Logger],
    position: str,
    progress_bar: bool,
) -> pl.Trainer:
    spec = plan.config.trainer
    checkpoint: Path | None = None
    if group.is_global_zero:
        work = plan.store.work(stage.key)
        work.mkdir(parents=True, exist_ok=True)
        checkpoint = latest_checkpoint(work)
    checkpoint = group.broadcast(checkpoint)
    callbacks: list[pl.Callback] = [Throughput()]
    if loggers or not group.is_global_zero:
        callbacks.append(LearningRateMonitor("step"))
    if progress_bar:
        callbacks.append(StageProgressBar(position))
    trainer = make_trainer(
        spec,
        find_unused_parameters=min(vars(stage.spec.loss)[term] for term in ("logits", "hidden", "attention")) <= 0,
        logger=loggers or group_logger(plan),
        callbacks=[*callbacks, *built.callbacks, *kept],
        enable_progress_bar=progress_bar,
        max_steps=stage.total_steps,
        max_epochs=1,
        min_epochs=0,
        val_check_interval=stage.eval_every * spec.accumulate_grad_batches,
        check_val_every_n_epoch=None,
        accumulate_grad_batches=spec.accumulate_grad_batches,
        gradient_clip_val=stage.train.gradient_clip or None,
        log_every_n_steps=spec.log_every_n_steps,
    )
    trainer.fit(built.module, datamodule=built.data, ckpt_path=checkpoint, weights_only=True)
    return trainer


def _dev_score(plan: Plan, built: BuiltStage, values: dict[str, float]) -> float:
    """The primary metric on the first dev set, whatever set chose the checkpoint."""
    name = next(name for name in built.module.dev_names if name != HOLDOUT)
    prefix = f"{name}/"
    return primary_score(
        plan.config.task, {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
    )


def group_logger(plan: Plan) -> Logger:
    """Ranks other than zero hold a logger that writes nothing: Lightning makes only rank zero's write."""
    return CSVLogger(plan.record.logs, name="unused")


def _section(values: dict[str, float], name: str) -> dict[str, float | None]:
    """One dev set's metrics; null for one that is undefined (Pearson's, where all predictions are equal)."""
    section = {
        key[len(name) + 1 :]: value for key, value in values.items() if key.startswith(f"{name}/") and key != SCORE
    }
    return {key: value if math.isfinite(value) else None for key, value in section.items()}
