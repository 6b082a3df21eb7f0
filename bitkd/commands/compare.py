"""The command on finished runs: compare."""

import argparse
from pathlib import Path

from rich import box
from rich.table import Table

from bitkd.commands.output import make_console, print_json
from bitkd.compare.comparison import Comparison
from bitkd.compare.finished import read_finished
from bitkd.compare.runs import Run, from_json
from bitkd.errors import InputError
from bitkd.report.tables import TextTable, difference_table, headline
from bitkd.report.terminal import render
from bitkd.report.write import RECORD, write_comparison
from bitkd.store.run_folder import MANIFEST


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
    named = all(len(arm.runs) == 1 and arm.first.name == arm.label for arm in comparison.arms)
    console.print(render([row for _, row in comparison.rows], [] if named else [arm for arm, _ in comparison.rows]))
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
    source = source.expanduser()
    file = source / RECORD if (source / RECORD).is_file() else source
    advice = f"name a run folder or a {RECORD} that `bitkd compare --out` wrote"
    if file.is_file():
        if file.suffix != ".json" or file.name == MANIFEST:
            raise InputError(f"{file} is no {RECORD}; {advice}")
        try:
            return from_json(file.read_text(encoding="utf-8"), str(file))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file} cannot be read ({error})") from error
    if source.suffix == ".json":
        raise InputError(f"{source} does not exist; {advice}")
    return [read_finished(source, to_compare=True)]


def render_text(table: TextTable) -> Table:
    """A table of text for a terminal."""
    drawn = Table(*("\n".join(name.rsplit(" ", 1)) for name in table.header), box=box.SIMPLE_HEAD, pad_edge=False)
    for row in table.rows:
        drawn.add_row(*row)
    return drawn
