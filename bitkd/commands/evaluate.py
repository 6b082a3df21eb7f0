"""The command evaluate, for checkpoints of bitkd and of transformers."""

import argparse

from bitkd.commands.checkpoints import check_source, open_checkpoint
from bitkd.commands.output import print_json
from bitkd.pipeline.checks import check_files
from bitkd.processes.libraries import quieten
from bitkd.report.console import Console
from bitkd.report.fitted import FittedTable


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
        rows = [[name, "undefined" if value is None else f"{value:.4f}"] for name, value in values.items()]
        Console().print(FittedTable(["metric", "value"], rows))
    return 0
