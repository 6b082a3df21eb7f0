"""The compare command."""

import argparse
from pathlib import Path

from bitkd.commands.output import print_json
from bitkd.compare.comparison import Comparison, comparisons_of
from bitkd.compare.load import artifact_folders, read_runs
from bitkd.compare.measure import measure_students
from bitkd.report.console import Console
from bitkd.report.glossary import training_state
from bitkd.report.tables import difference_table, exported_table, headline, measured_with, questions
from bitkd.report.terminal import render, render_text
from bitkd.report.verdict import sentences, task_table
from bitkd.report.write import check_folder, write_comparisons


def compare_command(arguments: argparse.Namespace) -> int:
    """Print the tables of a comparison, or JSON; with --out, write a report. Returns the exit code."""
    if arguments.out:
        check_folder(Path(arguments.out))
    sources = [Path(source) for source in arguments.runs]
    comparisons = comparisons_of([run for source in sources for run in read_runs(source)])
    folders = {key: folder for source in sources for key, folder in artifact_folders(source).items()}
    measured = [
        measure_students(
            comparison,
            folders,
            latency=not arguments.no_latency,
            again=arguments.measure_again,
            tell=Console(stderr=True).print,
        )
        for comparison in comparisons
    ]
    comparisons = comparisons_of([run for comparison in measured for run in comparison.runs])
    if arguments.out:
        write_comparisons(comparisons, Path(arguments.out))
    if arguments.json:
        data = [comparison.as_data() for comparison in comparisons]
        print_json(data[0] if len(data) == 1 else data)
        return 0
    console = Console()
    for text in sentences(comparisons[0].study):
        console.print(text)
    if (table := task_table(comparisons[0].study)).rows:
        console.print(render_text(table))
    for comparison in comparisons:
        _print_tables(comparison, console)
    if arguments.out:
        print(f"report: {Path(arguments.out) / 'index.html'}")
    return 0


def _print_tables(comparison: Comparison, console: Console) -> None:
    for warning in comparison.warnings:
        console.print(f"note: {warning}")
    named = all(len(arm.runs) == 1 and arm.first.name == arm.label for arm in comparison.arms)
    console.print(render([row for _, row in comparison.rows], [] if named else [arm for arm, _ in comparison.rows]))
    for table, below in (
        (headline(comparison), training_state(comparison)),
        (exported_table(comparison), measured_with(comparison)),
        (difference_table(comparison), questions(comparison) + comparison.size_notes),
    ):
        if table.rows:
            console.print(render_text(table))
        for line in below:
            console.print(f" {line}")
