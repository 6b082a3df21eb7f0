"""The command evaluate, for checkpoints of bitkd and of transformers."""

import argparse

from rich.table import Table

from bitkd.commands.checkpoints import check_source, open_checkpoint
from bitkd.commands.output import make_console, print_json
from bitkd.pipeline.checks import check_files
from bitkd.processes.libraries import quieten


def evaluate_command(arguments: argparse.Namespace) -> int:
    """Print the task's metrics of a checkpoint; returns the exit code."""
    checkpoint = open_checkpoint(arguments.checkpoint, arguments.settings, arguments.labels, needs_task=True)
    check_source(checkpoint)
    files = checkpoint.config.task.files
    check_files(checkpoint.config, [files.train, *files.dev.values()])
    from bitkd.commands.inference import evaluate

    quieten()
    values = evaluate(checkpoint)
    if arguments.json:
        print_json({"metrics": values})
    else:
        table = Table("metric", "value", box=None)
        for name, value in values.items():
            table.add_row(name, "undefined" if value is None else f"{value:.4f}")
        make_console().print(table)
    return 0
