"""Commands that run nothing: plan, config."""

import argparse
from dataclasses import asdict

from rich.table import Table

from bitkd.commands.output import make_console, print_json, quieten
from bitkd.config.load import load_config, to_yaml
from bitkd.pipeline.plan import make_plan
from bitkd.report.mermaid import draw_graph
from bitkd.sources.cache import open_memo


def plan_command(arguments: argparse.Namespace) -> int:
    quieten()
    config = load_config(arguments.settings)
    memo = open_memo(config, recall=True)
    try:
        plan = make_plan(config, memo)
    finally:
        memo.keep()
    record, store = plan.record, plan.store
    stages = plan.rows()
    for stage, row in zip(plan.stages, stages):
        row["state"] = plan.state(stage)
        row["artifact"] = str(store.path(stage.key)) if store.finished(stage.key) else None
    if arguments.json:
        print_json({"run": str(record.folder), "store": str(store.root), "stages": stages})
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
        console = make_console()
        console.print(table)
        console.print(f"run: {record.folder}\nstore: {store.root}")
    return 0


def config_command(arguments: argparse.Namespace) -> int:
    """Print the resolved configuration; returns the exit code."""
    config = load_config(arguments.settings, require=())
    if arguments.json:
        print_json(asdict(config))
    else:
        print(to_yaml(config), end="")
    return 0
