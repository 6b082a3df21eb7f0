"""The command on finished runs: compare."""

import argparse
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from bitkd.commands.output import make_console, print_json
from bitkd.errors import InputError
from bitkd.report.comparison import compare_rows, render
from bitkd.report.records import Run, check_complete, from_json, make_run
from bitkd.report.report import RECORD, write_comparison
from bitkd.report.summary import Comparison, TextTable, difference_table, headline
from bitkd.store.record import RunRecord


def compare_command(arguments: argparse.Namespace) -> int:
    comparison = Comparison.of([run for source in arguments.runs for run in read_runs(Path(source))])
    if arguments.out:
        write_comparison(comparison, Path(arguments.out))
    if arguments.json:
        print_json(comparison.as_data())
        return 0
    console = make_console()
    for warning in comparison.warnings:
        console.print(f"note: {warning}")
    console.print(render(compare_rows(comparison.runs)))
    for table in (headline(comparison), difference_table(comparison)):
        if table.rows:
            console.print(render_text(table))
    if arguments.out:
        print(f"report: {Path(arguments.out) / 'index.html'}")
    return 0


def read_runs(source: Path) -> list[Run]:
    """The runs that a name on the command line stands for: a run folder, or a comparison.json (or its folder).

    InputError where a run is not finished or of an older version, or a record is missing or damaged.
    """
    source = source.expanduser().resolve()
    file = source / RECORD if (source / RECORD).is_file() else source
    if file.is_file():
        try:
            return from_json(file.read_text(encoding="utf-8"), str(file))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file} cannot be read ({error})") from error
    if source.suffix == ".json":
        raise InputError(f"{source} does not exist; name a run folder or a {RECORD} that `bitkd compare --out` wrote")
    info, stages = _records(source)
    check_complete(str(source), info, stages)
    return [make_run(source.name, info, stages)]


def render_text(table: TextTable) -> Table:
    """A table of text for a terminal."""
    drawn = Table(*(name.replace(" ", "\n", 1) for name in table.header), box=box.SIMPLE_HEAD, pad_edge=False)
    for row in table.rows:
        drawn.add_row(*row)
    return drawn


def run_data(folder: Path) -> Run:
    """A run that has just finished; InputError where it is not finished."""
    return make_run(folder.name, *_records(folder))


def _records(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    record = RunRecord.read(folder)
    planned = record.info.get("planned", {})
    missing = [name for name, key in planned.items() if record.stages.get(name) != key]
    if missing or not planned:
        raise InputError(
            f"{folder} is not finished: {', '.join(missing) or 'every stage'} missing or of other settings; run it to the end"
        )
    return record.info, {
        name: {"path": artifact.path, "stage": artifact.stage, "metrics": artifact.metrics}
        for name, artifact in record.artifacts().items()
    }
