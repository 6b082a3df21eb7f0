"""Finished runs as rows: one for each stage, as plain data."""

from dataclasses import dataclass
from typing import Any

from bitkd.compare.runs import Run, Stage


@dataclass(frozen=True)
class Row:
    """One stage of one run.  score: the task's primary metric on dev; null where there is no head yet.
    paper_mib, packed_mib: sizes by the two conventions (bitkd.models.size); disk_mib: the file as it lies there.
    word_tables: word embeddings side by side, 2 after a split.  student_flops, teacher_flops: of training.
    seconds: training time, over all resumptions.
    """

    run: str
    stage: str
    title: str
    task: str
    metric: str
    score: float | None
    dev: dict[str, Any]
    precision: str
    parameters: int
    encoder_bits: int
    paper_mib: float
    packed_mib: float
    disk_mib: float
    steps: int
    seconds: float
    artifact: str
    pipeline: str
    seed: int
    kind: str
    word_tables: int
    examples: int
    student_flops: int
    teacher_flops: int
    device: str


def rows_of(run: Run) -> list[Row]:
    """A row for each stage that is a model."""
    return [_row(run, stage) for stage in run.stages if stage.is_model]


def _row(run: Run, stage: Stage) -> Row:
    return Row(
        run=run.name,
        stage=stage.name,
        title=stage.title,
        task=run.task,
        metric=run.metric,
        score=stage.score,
        dev=stage.dev,
        precision=stage.precision,
        parameters=stage.parameters,
        encoder_bits=stage.encoder_bits,
        paper_mib=stage.paper_mib,
        packed_mib=stage.packed_mib,
        disk_mib=stage.disk_mib,
        steps=stage.steps,
        seconds=stage.seconds,
        artifact=stage.key,
        pipeline=run.pipeline,
        seed=run.seed,
        kind=stage.kind,
        word_tables=stage.word_tables,
        examples=stage.examples,
        student_flops=stage.student_flops,
        teacher_flops=stage.teacher_flops,
        device=stage.device,
    )
