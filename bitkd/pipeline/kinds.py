"""The kinds of nodes, and what a node of each kind reads."""

from bitkd.config.schema import Config, StageSpec
from bitkd.stages.distillation import DistillationModule
from bitkd.stages.finetune import FineTune
from bitkd.stages.general import GeneralDistillation
from bitkd.stages.intermediate import IntermediateDistillation
from bitkd.stages.prediction import PredictionDistillation
from bitkd.stages.single_stage import SingleStageDistillation

DISTILLATION: dict[str, type[DistillationModule]] = {
    "general": GeneralDistillation,
    "intermediate": IntermediateDistillation,
    "prediction": PredictionDistillation,
    "single_stage": SingleStageDistillation,
}
TRAINED = {"finetune": FineTune, **DISTILLATION}
AUGMENT = "augment"
KINDS = (*TRAINED, "init", "split", AUGMENT)


def wants_augmented(stage: StageSpec) -> bool:
    """Whether a stage trains on augmented rows where there are any."""
    on_task = stage.kind in DISTILLATION and stage.kind != "general"
    return on_task if stage.augmented is None else stage.augmented


def upstream_of(stage: StageSpec, config: Config) -> dict[str, str]:
    """Role (student, teacher, data) -> the node or source that plays it."""
    if stage.kind == AUGMENT:  # it reads a model's files, which its identity names
        return {}
    upstream = {"student": stage.student} | ({"teacher": stage.teacher} if stage.teacher else {})
    node = next((name for name, other in config.stages.items() if other.kind == AUGMENT), None)
    return upstream | ({"data": node} if node and wants_augmented(stage) else {})
