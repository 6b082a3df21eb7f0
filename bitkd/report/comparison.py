"""Finished runs side by side: one row per stage, as plain data and as a table for a terminal."""

from dataclasses import dataclass, replace
from typing import Any

from rich import box
from rich.table import Table

from bitkd.errors import InputError
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


def compare_rows(runs: list[Run]) -> list[Row]:
    """Rows of all runs, run after run; InputError for runs of different tasks, whose numbers mean different things."""
    tasks = sorted({run.task for run in runs})
    if len(tasks) > 1:
        raise InputError(f"these runs are of different tasks ({', '.join(tasks)}); compare runs of one task at a time")
    return [_row(run, stage) for run in runs for stage in run.stages if stage.is_model]


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


def _titled(row: Row) -> Row:
    return row if row.title == row.stage else replace(row, stage=f"{row.stage} ({row.title})")


def render(rows: list[Row]) -> Table:
    """The comparison as a table for a terminal."""
    table = Table(*(name.replace(" ", "\n", 1) for name in _header(rows)), box=box.SIMPLE_HEAD, pad_edge=False)
    for before, row in zip([None, *rows], rows):
        if before is not None and before.run != row.run:
            table.add_section()
        table.add_row(*_cells(row))
    return table
