"""What a stage reads: which nodes or sources play which role."""

from bitkd.config.schema import Config, StageSpec
from bitkd.stages.kinds import AUGMENT, DISTILLATION


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
