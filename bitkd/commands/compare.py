"""The compare command."""

import argparse
from pathlib import Path

from bitkd.commands.output import print_json
from bitkd.compare.comparison import Comparison
from bitkd.compare.load import artifact_folders, read_runs
from bitkd.compare.measure import measure_students
from bitkd.report.console import Console
from bitkd.report.glossary import training_state
from bitkd.report.tables import difference_table, exported_table, headline, measured_with
from bitkd.report.terminal import render, render_text
from bitkd.report.write import check_folder, write_comparison


def compare_command(arguments: argparse.Namespace) -> int:
    """Print the tables of a comparison, or JSON; with --out, write a report. Returns the exit code."""
    if arguments.out:
        check_folder(Path(arguments.out))
    sources = [Path(source) for source in arguments.runs]
    comparison = Comparison.of([run for source in sources for run in read_runs(source)])
    comparison = measure_students(
        comparison,
        {key: folder for source in sources for key, folder in artifact_folders(source).items()},
        latency=not arguments.no_latency,
        again=arguments.measure_again,
        tell=Console(stderr=True).print,
    )
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
    for table, below in (
        (headline(comparison), training_state(comparison)),
        (exported_table(comparison), measured_with(comparison)),
        (difference_table(comparison), comparison.size_notes),
    ):
        if table.rows:
            console.print(render_text(table))
        for line in below:
            console.print(f" {line}")
    if arguments.out:
        print(f"report: {Path(arguments.out) / 'index.html'}")
    return 0
