"""The commands plan and config, which run nothing."""

import argparse
from dataclasses import asdict

from rich.table import Table

from bitkd.commands.output import make_console, print_json
from bitkd.config.load import load_config, to_yaml
from bitkd.pipeline.plan import make_plan
from bitkd.processes.libraries import quieten
from bitkd.report.mermaid import draw_graph
from bitkd.sources.cache import open_cache


def plan_command(arguments: argparse.Namespace) -> int:
    """Print the stages and their states; returns the exit code."""
    quieten()
    config = load_config(arguments.settings)
    cache = open_cache(config, read_disk=True)
    try:
        plan = make_plan(config, cache)
    finally:
        cache.save()
    stages = plan.rows()
    if arguments.json:
        print_json({"run": str(plan.folder.folder), "store": str(plan.store.root), "stages": stages})
    elif arguments.mermaid:
        print(draw_graph(stages))
    else:
        table = Table("", "stage", "kind", "student", "teacher", "steps", "state", box=None)
        for number, row in enumerate(stages, start=1):
            inputs = row["inputs"]
            steps = "?" if row["steps"] is None else row["steps"]
            cells = (
                row["name"],
                row["kind"],
                inputs.get("student", ""),
                inputs.get("teacher", ""),
                steps,
                row["state"],
            )
            table.add_row(str(number), *map(str, cells))
        console = Console()
        console.print(table)
        console.print(f"run: {plan.folder.folder}\nstore: {plan.store.root}")
    return 0


def config_command(arguments: argparse.Namespace) -> int:
    """Print the resolved configuration; returns the exit code."""
    config = load_config(arguments.settings, require=())
    if arguments.json:
        print_json(asdict(config))
    else:
        print(to_yaml(config), end="")
    return 0
