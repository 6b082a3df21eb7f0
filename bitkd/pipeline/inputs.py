"""What a stage reads: which nodes or sources play which role."""

from bitkd.config.schema import Config, StageSpec
from bitkd.stages.kinds import kind_of


def wants_augmented(stage: StageSpec) -> bool:
    """Whether a stage trains on augmented rows if there are any."""
    kind = kind_of(stage.kind)
    on_task = kind.distils and not kind.on_corpus
    return on_task if stage.augmented is None else stage.augmented


def row_makers(config: Config) -> list[str]:
    """The nodes that make rows."""
    return [name for name, stage in config.stages.items() if kind_of(stage.kind).makes_rows]


def uses_corpus(config: Config) -> bool:
    """Whether any stage reads the text corpus."""
    return any(kind_of(stage.kind).on_corpus for stage in config.stages.values())


def upstream_of(stage: StageSpec, config: Config) -> dict[str, str]:
    """Role (student, teacher, data) -> the node or source that plays it."""
    if kind_of(stage.kind).makes_rows:  # it reads a model's files, which its identity names
        return {}
    upstream = {"student": stage.student} | ({"teacher": stage.teacher} if stage.teacher else {})
    makers = row_makers(config)
    return upstream | ({"data": makers[0]} if makers and wants_augmented(stage) else {})
