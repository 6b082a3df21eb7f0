"""The command on finished runs: compare."""

import argparse
from dataclasses import asdict
from pathlib import Path

from bitkd.commands.output import make_console, print_json
from bitkd.errors import InputError
from bitkd.report.comparison import RunData, compare_rows, render, write_report
from bitkd.store.record import RunRecord


def compare_command(arguments: argparse.Namespace) -> int:
    runs = [run_data(Path(folder)) for folder in arguments.runs]
    rows = compare_rows(runs)
    if arguments.out:
        write_report(rows, Path(arguments.out))
    if arguments.json:
        print_json({"rows": [asdict(row) for row in rows]})
    else:
        make_console().print(render(rows))
        if arguments.out:
            print(f"report: {Path(arguments.out) / 'report.md'}")
    return 0


def run_data(folder: Path) -> RunData:
    """What a comparison reads of a run; InputError where it is not finished."""
    record = RunRecord.read(folder.expanduser().resolve())
    missing = [name for name, key in record.info["planned"].items() if record.stages.get(name) != key]
    if missing:
        raise InputError(
            f"{folder} is not finished: {', '.join(missing)} missing or of other settings; run it to the end"
        )
    stages = {
        name: {"path": artifact.path, "stage": artifact.stage, "metrics": artifact.metrics}
        for name, artifact in record.artifacts().items()
    }
    return RunData(folder.name, record.info["task"], record.info["metric"], record.info["titles"], stages)
