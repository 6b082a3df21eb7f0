"""Finished runs: one row per stage, as plain data and as a table for a terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table

from bitkd.report.records import Run, Stage


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


def _header(rows: list[Row]) -> tuple[str, ...]:
    columns = ("bits", "parameters", "MiB on paper", "MiB packed", "steps", "seconds")
    return ("run", "stage", f"dev {rows[0].metric}", *columns)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.run,
        row.stage,
        "–" if row.score is None else f"{row.score:.4f}",
        row.precision,
        f"{row.parameters / 1e6:.3f} M",
        f"{row.paper_mib:.3f}",
        f"{row.packed_mib:.3f}",
        str(row.steps),
        f"{row.seconds:.0f}",
    )


def render(rows: list[Row], labels: Sequence[str] = ()) -> Table:
    """The rows as a table for a terminal, run after run.

    labels: each row's arm, which then stands with the seed on the first row of a run; none where runs' names say it all.
    """
    header = (*_header(rows)[:1], *(("arm", "seed") if labels else ()), *_header(rows)[1:])
    table = Table(*("\n".join(name.rsplit(" ", 1)) for name in header), box=box.SIMPLE_HEAD, pad_edge=False)
    before = None
    for position, row in enumerate(rows):
        arm = (labels[position], str(row.seed)) if labels else ()
        is_first = (row.run, *arm) != before
        if is_first and position:
            table.add_section()
        run, *cells = _cells(row)
        table.add_row(run, *(arm if is_first else [""] * len(arm)), *cells)
        before = (row.run, *arm)
    return table
