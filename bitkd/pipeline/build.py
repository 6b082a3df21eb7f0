"""From a planned stage to the LightningModule that trains or validates its student."""

from collections.abc import Callable
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from bitkd.config.schema import PRETRAINED
from bitkd.data.metrics import primary_score
from bitkd.models.encoder import read_spec, write_spec
from bitkd.models.heads import HEADS
from bitkd.models.importance import Importance
from bitkd.pipeline.stage import PlannedStage
from bitkd.sources.sources import Sources
from bitkd.stages.base import Origin, StudentModule
from bitkd.stages.spec import OptimSpec


def build_module(
    stage: PlannedStage,
    sources: Sources,
    load: Callable[[str], PreTrainedModel],
    importance: Callable[[PreTrainedModel], Importance],
) -> StudentModule:
    """The LightningModule of a stage, with a student that its kind's `start` makes.

    load: gives a finished stage's student by the stage's name, or the pre-trained encoder.
    importance: estimates the importance of the heads and neurons of a model that is narrowed.
    """
    spec, kind, task = stage.spec, stage.kind, sources.config.task
    teacher = load(spec.teacher) if spec.teacher else None
    origin = Origin(
        load=partial(load, spec.student),
        importance=importance,
        pretrained=sources.model if spec.student == PRETRAINED else None,
        checkpoint=stage.checkpoint,
        checkpoint_labels=spec.labels,
        labels=task.labels,
        head=HEADS[task.kind],
        teacher=teacher,
        shape=sources.config.student,
        quant=spec.quant,
    )
    module_class = kind.module_class
    student = module_class.start(origin)
    settings: dict[str, Any] = {
        "optim": OptimSpec(**{name: getattr(stage.train, name) for name in OptimSpec.__dataclass_fields__}),
        "total_steps": stage.total_steps,
    }
    if kind.keeps_head:
        settings["metrics"] = sources.task_rows.metrics()
        settings["score"] = partial(primary_score, task)
    if kind.distils:
        return module_class(student, teacher, spec.loss, **settings)
    return module_class(student, **settings)


def finish_student(stage: PlannedStage, module: StudentModule) -> PreTrainedModel:
    """The student as the next stages get it, with its spec updated."""
    student = module.student
    spec = read_spec(student)
    spec.trained_head = spec.trained_head or stage.kind.trains_head(stage.spec.loss)
    write_spec(student, spec)
    return student


def selection(stage: PlannedStage, student: PreTrainedModel) -> str:
    """Which checkpoint of a fit is kept, `best` or `last`: the score of a random head is no reason to choose a checkpoint."""
    if stage.spec.select != "auto":
        return stage.spec.select
    scored = read_spec(student).trained_head or stage.kind.trains_head(stage.spec.loss)
    return "best" if stage.kind.keeps_head and scored else "last"


def input_counts(stage: PlannedStage, student: PreTrainedModel) -> bool:
    """Whether the student that a fit begins with can be its best: not if the score is that of an untrained head."""
    return not stage.has_new_head and (not stage.kind.keeps_head or read_spec(student).trained_head)
