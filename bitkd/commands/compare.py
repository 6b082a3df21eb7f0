"""The compare command."""

import argparse
from pathlib import Path

from bitkd.commands.output import print_json
from bitkd.compare.comparison import Comparison
from bitkd.compare.load import read_runs
from bitkd.report.console import Console
from bitkd.report.tables import difference_table, headline
from bitkd.report.terminal import render, render_text
from bitkd.report.write import check_folder, write_comparison


def compare_command(arguments: argparse.Namespace) -> int:
    """Print the tables of a comparison, or JSON; with --out, write a report. Returns the exit code."""
    if arguments.out:
        check_folder(Path(arguments.out))
    comparison = Comparison.of([run for source in arguments.runs for run in read_runs(Path(source))])
    if arguments.out:
        write_comparison(comparison, Path(arguments.out))
    if arguments.json:
        print_json(comparison.as_data())
        return 0
    console = Console()
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
