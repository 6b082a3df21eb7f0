"""The compare command."""

import argparse
from pathlib import Path

from bitkd.commands.output import print_json
from bitkd.compare.comparison import Comparison, StudyComparison, arms_of
from bitkd.compare.load import artifact_folders, read_runs
from bitkd.compare.measure import measure_students
from bitkd.report.console import Console
from bitkd.report.glossary import training_state
from bitkd.report.tables import difference_table, exported_table, headline, measured_with, questions
from bitkd.report.terminal import render, render_text
from bitkd.report.verdict import TASK_NOTE, sentences, task_table
from bitkd.report.write import check_folder, write_comparison


def compare_command(arguments: argparse.Namespace) -> int:
    """Print the tables of a comparison, or JSON; with --out, write a report. Returns the exit code."""
    if arguments.out:
        check_folder(Path(arguments.out))
    sources = [Path(source) for source in arguments.runs]
    tasks = arms_of([run for source in sources for run in read_runs(source)])
    folders = {key: folder for source in sources for key, folder in artifact_folders(source).items()}
    measured = [
        measure_students(
            arms,
            folders,
            latency=not arguments.no_latency,
            again=arguments.measure_again,
            tell=Console(stderr=True).print,
        )
        for arms in tasks
    ]
    compared = StudyComparison.of(measured)
    if arguments.out:
        write_comparison(compared, Path(arguments.out))
    if arguments.json:
        data = [comparison.as_data() for comparison in compared.tasks]
        print_json(data[0] if len(data) == 1 else data)
        return 0
    console = Console()
    for text in sentences(compared.study):
        console.print(text)
    for warning in compared.warnings:
        console.print(f"note: {warning}")
    if (table := task_table(compared.study)).rows:
        console.print(render_text(table))
        console.print(f" {TASK_NOTE}")
    for comparison in compared.tasks:
        _print_tables(comparison, console)
    if arguments.out:
        print(f"report: {Path(arguments.out) / 'index.html'}")
    return 0


def _print_tables(comparison: Comparison, console: Console) -> None:
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
