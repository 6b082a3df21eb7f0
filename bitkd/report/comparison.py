"""Finished runs side by side: one row per stage."""

import csv
import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from bitkd.errors import InputError

MIB = 2**20


@dataclass(frozen=True)
class RunData:
    """A finished run, as plain data.  stages: name -> {"path", "stage", "metrics"}, in graph order."""

    name: str
    task: str
    metric: str
    titles: dict[str, str]
    stages: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Row:
    """One stage of one run.  score: the task's primary metric on dev; null where there is no head yet.
    paper_mib, packed_mib: sizes by the two conventions (bitkd.models.size); disk_mib: the file as it lies there.
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


def compare_rows(runs: list[RunData]) -> list[Row]:
    """Rows of all runs, run after run; InputError for runs of different tasks, whose numbers mean different things."""
    tasks = sorted({run.task for run in runs})
    if len(tasks) > 1:
        raise InputError(f"these runs are of different tasks ({', '.join(tasks)}); compare runs of one task at a time")
    rows = []
    for run in runs:
        for name, data in run.stages.items():
            stage, metrics = data["stage"], data["metrics"]
            if "size" not in stage:  # rows, not a model
                continue
            size = stage["size"]
            rows.append(
                Row(
                    run=run.name,
                    stage=name,
                    title=run.titles[name],
                    task=run.task,
                    metric=run.metric,
                    score=metrics["score"],
                    dev={key: value for key, value in metrics.items() if key != "score"},
                    precision=size["precision"],
                    parameters=size["parameters"],
                    encoder_bits=size["encoder_bits"],
                    paper_mib=size["paper_mib"],
                    packed_mib=size["file_mib"],
                    disk_mib=(Path(data["path"]) / "model.safetensors").stat().st_size / MIB,
                    steps=stage["steps"],
                    seconds=stage["seconds"],
                    artifact=Path(data["path"]).resolve().name,
                )
            )
    return rows


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


def write_report(rows: list[Row], folder: Path) -> None:
    """Write report.md, comparison.csv and comparison.json into `folder`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lines = [f"# {rows[0].task}: {', '.join(dict.fromkeys(row.run for row in rows))}", ""]
        header = _header(rows)
        lines += [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
        lines += [f"| {' | '.join(_cells(_titled(row)))} |" for row in rows]
        (folder / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        records = [asdict(row) for row in rows]
        (folder / "comparison.json").write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")
        with open(folder / "comparison.csv", "w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, [field.name for field in fields(Row)])
            writer.writeheader()
            writer.writerows(record | {"dev": json.dumps(record["dev"])} for record in records)
    except OSError as error:
        raise InputError(f"{folder} is not writable ({error.strerror}); choose another folder with --out") from error
