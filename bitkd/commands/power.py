"""The power command."""

import argparse
import math
from pathlib import Path

from bitkd.commands.output import print_json
from bitkd.compare.load import read_runs
from bitkd.compare.planning import planned
from bitkd.errors import InputError
from bitkd.report.console import Console
from bitkd.report.power import above_table, below_table, power_data, power_table
from bitkd.report.terminal import render_text


def power_command(arguments: argparse.Namespace) -> int:
    """Print what a next study needs, or JSON. Returns the exit code."""
    primary = _primary(arguments.primary)
    if arguments.margin is not None and not 0 < arguments.margin < math.inf:
        raise InputError(f"--margin={arguments.margin:g} is no margin; give points above 0, such as --margin 1")
    found = planned([run for source in arguments.records for run in read_runs(Path(source))], primary, arguments.margin)
    if arguments.json:
        print_json(power_data(found))
        return 0
    console = Console()
    for text in above_table(found):
        console.print(text)
    console.print(render_text(power_table(found)))
    for text in below_table(found):
        console.print(text)
    return 0


def _primary(text: str | None) -> list[str]:
    if text is None:
        return []
    names = [name.strip() for name in text.split(",")]
    if len(names) != 2 or not all(names) or names[0] == names[1]:
        raise InputError(f"--primary={text} names no two pipelines; give FIRST,SECOND, such as multistage,singlestage")
    return names
