"""From a planned stage to the module, data and callbacks that Lightning runs. Configuration stops here."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from transformers import PreTrainedModel

from bitkd.callbacks import WeightSplitting
from bitkd.config.schema import PRETRAINED
from bitkd.data.metrics import build_metrics, primary_score
from bitkd.models.artifact import load_classifier, load_encoder, load_student, new_classifier, permute_labels
from bitkd.models.encoder import read_spec, write_spec
from bitkd.models.importance import Importance, estimate_importance
from bitkd.models.prepare import prepare
from bitkd.models.student import add_head, build_student
from bitkd.pipeline.planned import Plan, PlannedStage
from bitkd.stages.base import StudentModule
from bitkd.stages.distillation import DistillationModule
from bitkd.stages.finetune import FineTune
from bitkd.stages.general import GeneralDistillation
from bitkd.stages.intermediate import IntermediateDistillation
from bitkd.stages.kinds import DISTILLATION
from bitkd.stages.prediction import PredictionDistillation
from bitkd.stages.single_stage import SingleStageDistillation
from bitkd.stages.spec import OptimSpec

MODULES: dict[str, type[DistillationModule]] = {
    "general": GeneralDistillation,
    "intermediate": IntermediateDistillation,
    "prediction": PredictionDistillation,
    "single_stage": SingleStageDistillation,
}

Upstream = Callable[[str], PreTrainedModel]
"""Loads a finished stage's student by the stage's name, or the pre-trained encoder."""


@dataclass
class BuiltStage:
    """What runs.  fit: train, or only validate.  select: `best` or `last`."""

    module: StudentModule
    data: pl.LightningDataModule
    callbacks: list[pl.Callback]
    fit: bool
    select: str


def load_upstream(plan: Plan, name: str) -> PreTrainedModel:
    """A finished node's student, or the pre-trained encoder."""
    if name == PRETRAINED:
        return load_encoder(plan.sources.model)
    return load_student(plan.store.path(plan[name].key))


def build_stage(plan: Plan, stage: PlannedStage) -> BuiltStage:
    """Build one stage from its finished upstreams.

    Every rank builds the same from the same seed, so nothing needs to be sent.
    """
    pl.seed_everything(stage.seed, verbose=False)
    spec, config, sources = stage.spec, plan.config, plan.sources

    def importance(source: PreTrainedModel) -> Importance:
        data = sources.corpus_data if spec.kind == "general" else sources.task_data
        return estimate_importance(source, data.importance_batches(config.data.importance_rows))

    module = build_module(plan, stage, partial(load_upstream, plan), importance)
    callbacks: list[pl.Callback] = [WeightSplitting()] if spec.kind == "split" else []
    parts = config.trainer.accumulate_grad_batches
    shape = (stage.train, stage.total_steps * parts, parts, stage.seed)
    data: pl.LightningDataModule
    if spec.kind == "general":
        data = sources.corpus_module(*shape)
    else:
        data = sources.task_module(*shape, augmented=plan.augmented_rows(stage))
    return BuiltStage(module, data, callbacks, stage.trains, _selection(stage, module.student))


def build_module(
    plan: Plan, stage: PlannedStage, load: Upstream, importance: Callable[[PreTrainedModel], Importance]
) -> StudentModule:
    """The LightningModule of a stage.

    load: gives its upstreams.  importance: of the heads and neurons of a model that is narrowed.
    """
    spec, sources = stage.spec, plan.sources
    teacher = load(spec.teacher) if spec.teacher else None
    student = _student(plan, stage, teacher, load, importance)
    if spec.kind == "split":
        # The student is split where it is 2-bit; an FP32 one is made ternary first, without training.
        words = spec.quant.embedding_bits
        prepare(student, replace(spec.quant, weight_bits=2, embedding_bits=2 if words == 1 else words))
    else:
        prepare(student, spec.quant)
    settings: dict[str, Any] = {
        "optim": OptimSpec(**{k: getattr(stage.train, k) for k in OptimSpec.__dataclass_fields__}),
        "total_steps": stage.total_steps,
    }
    if spec.kind != "general":
        task = plan.config.task
        settings["metrics"] = {name: build_metrics(task) for name in sources.task_data.dev_names}
        settings["score"] = lambda values: primary_score(task, values)
    if spec.kind in DISTILLATION:
        assert teacher is not None
        return MODULES[spec.kind](student, teacher, spec.loss, **settings)
    return FineTune(student, **settings) if stage.trains else StudentModule(student, **settings)


def finish_student(stage: PlannedStage, module: StudentModule) -> PreTrainedModel:
    """The student as it is handed on, with its spec brought up to date."""
    student = module.student
    spec = read_spec(student)
    if stage.spec.kind in ("finetune", "prediction", "single_stage"):
        spec.trained_head = True
    write_spec(student, spec)
    return student


def _student(
    plan: Plan,
    stage: PlannedStage,
    teacher: PreTrainedModel | None,
    load: Upstream,
    importance: Callable[[PreTrainedModel], Importance],
) -> PreTrainedModel:
    spec, config = stage.spec, plan.config
    if stage.checkpoint is not None:
        model = load_classifier(stage.checkpoint)
        permute_labels(model, config.task.labels, spec.labels)
        return model
    if spec.kind == "finetune" and spec.student == PRETRAINED:
        return new_classifier(plan.sources.model, config.task.labels)
    source = load(spec.student)
    if spec.kind in ("general", "init"):
        narrowed = config.student.width < 1 and config.student.init == "copy"
        return build_student(source, config.student, importance(source) if narrowed else None)
    if spec.kind in DISTILLATION and teacher is not None and not hasattr(source, "classifier"):
        return add_head(source, teacher)
    return source


def _selection(stage: PlannedStage, student: PreTrainedModel) -> str:
    if stage.spec.select != "auto":
        return stage.spec.select
    headless = stage.spec.kind == "general"
    random_head = stage.spec.kind == "intermediate" and not read_spec(student).trained_head
    return "last" if headless or random_head else "best"


def load_weights(module: StudentModule, file: Path) -> None:
    """Put the weights of a Lightning checkpoint into `module`."""
    state = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    module.load_state_dict(state)
