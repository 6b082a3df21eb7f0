"""Commands that run nothing: plan, config."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from bitkd.commands.output import make_console, print_json, quieten
from bitkd.config.load import load_config, to_yaml
from bitkd.config.schema import Config
from bitkd.pipeline.memo import inputs_of, keep_plan, recall_plan
from bitkd.report.mermaid import draw_graph
from bitkd.store.artifacts import Store, store_root
from bitkd.store.record import RunRecord, state_of


def plan_command(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.settings)
    record = RunRecord.open(Path(config.run.dir), config.task.name, config.run.name or config.pipeline.name)
    store = Store(store_root(config))
    stages = recall_plan(config) or _make_rows(config)
    for stage in stages:
        key = stage["key"]
        stage["state"] = state_of(store, record, stage["name"], key)
        stage["artifact"] = str(store.path(key)) if store.finished(key) else None
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


def _make_rows(config: Config) -> list[dict[str, Any]]:
    """The rows of a new plan, checked and kept."""
    from bitkd.pipeline.plan import make_plan

    quieten()
    read = inputs_of(config)
    rows = make_plan(config).rows()
    keep_plan(config, rows, read)
    return rows


def config_command(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.settings, require=())
    if arguments.json:
        print_json(asdict(config))
    else:
        print(to_yaml(config), end="")
    return 0
