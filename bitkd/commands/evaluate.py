"""The command evaluate, for checkpoints of bitkd and of transformers."""

import argparse

from bitkd.commands.checkpoints import check_rows, check_source, is_setting, open_checkpoint, text_columns
from bitkd.commands.output import print_json
from bitkd.data.texts import TextFile, read_labelled
from bitkd.errors import InputError
from bitkd.pipeline.checks import check_files
from bitkd.processes.libraries import quieten
from bitkd.report.console import Console
from bitkd.report.fitted import FittedTable


def evaluate_command(arguments: argparse.Namespace) -> int:
    """Print the task's metrics of a checkpoint; returns the exit code."""
    names = [word for word in arguments.settings if not is_setting(word)]
    settings = [word for word in arguments.settings if word not in names]
    if len(names) > 1:
        raise InputError(f"give one file of rows; there are {', '.join(names)}")
    if arguments.format and not names:
        raise InputError("--format tells how a file of rows is read; give one, or - for standard input")
    checkpoint = open_checkpoint(arguments.checkpoint, settings, arguments.labels, needs_task=True)
    task, rows = checkpoint.config.task, None
    if names:
        check_rows(checkpoint)
        rows = read_labelled(TextFile(names[0], text_columns(task), arguments.format), task)
    else:
        check_source(checkpoint)
        check_files(checkpoint.config, [task.files.train, *task.files.dev.values()])
    from bitkd.commands.inference import evaluate

    quieten()
    values = evaluate(checkpoint, rows)
    if arguments.json:
        print_json({"metrics": values})
    else:
        lines = [[name, "undefined" if value is None else f"{value:.4f}"] for name, value in values.items()]
        Console().print(FittedTable(["metric", "value"], lines))
    return 0
