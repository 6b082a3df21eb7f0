"""Finished runs as rows: one for each stage, as plain data."""

from dataclasses import dataclass, fields

from bitkd.compare.runs import Run, Stage


@dataclass(frozen=True)
class Row:
    """One stage of one run: the columns of comparison.csv. Fields without a docstring are those of Run and Stage."""

    run: str
    stage: str
    title: str
    task: str
    metric: str
    score: float | None
    dev: dict[str, dict[str, float | None]]
    precision: str
    parameters: int
    encoder_bits: int
    paper_mib: float
    packed_mib: float
    disk_mib: float
    steps: int
    seconds: float
    artifact: str
    """The artifact's key in the store."""

    pipeline: str
    seed: int
    kind: str
    word_tables: int
    examples: int
    student_flops: int
    teacher_flops: int
    device: str
    importance_flops: int | None
    validation_seconds: float | None
    saving_seconds: float | None
    padded_tokens: int | None
    tokens: int | None
    selected: str | None
    selected_step: int | None
    selection_rows: int | None


def rows_of(run: Run) -> list[Row]:
    """A row for each stage that is a model."""
    return [_row(run, stage) for stage in run.stages if stage.is_model]


def _row(run: Run, stage: Stage) -> Row:
    values = {name: value for name, value in vars(stage).items() if name in _COLUMNS}
    values |= {"run": run.name, "task": run.task, "metric": run.metric, "pipeline": run.pipeline, "seed": run.seed}
    return Row(**values, stage=stage.name, artifact=stage.key)


_COLUMNS = {field.name for field in fields(Row)}
