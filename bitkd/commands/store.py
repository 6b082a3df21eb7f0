"""The store command: list, verify, gc."""

import argparse
from dataclasses import asdict
from pathlib import Path

from rich.filesize import decimal

from bitkd.commands.output import print_json
from bitkd.config.load import load_config
from bitkd.config.schema import store_root
from bitkd.errors import InputError
from bitkd.names import shown
from bitkd.report.console import Console
from bitkd.report.fitted import FittedTable
from bitkd.store.artifacts import Store
from bitkd.store.gc import Entry, Inventory, prune, take_inventory


def store_command(arguments: argparse.Namespace) -> int:
    """List, verify or clean the store; returns the exit code."""
    config = load_config(arguments.settings, require=())
    store = Store(store_root(config))
    runs = Path(config.run.dir).expanduser().resolve()
    inventory = take_inventory(store, runs)
    if arguments.action == "gc":
        return _collect(arguments, store, inventory, runs)
    if arguments.older_than or arguments.max_size or arguments.needed or arguments.dry_run:
        raise InputError(f"--older-than, --max-size, --needed and --dry-run are for gc, this is {arguments.action}")
    return {"list": _list, "verify": _verify}[arguments.action](arguments, store, inventory)


def _list(arguments: argparse.Namespace, store: Store, inventory: Inventory) -> int:
    if arguments.json:
        print_json({"store": str(store.root), "entries": [asdict(entry) for entry in inventory.entries]})
        return 0
    console = Console()
    console.print(_table(inventory.entries))
    console.print(f"{len(inventory.entries)} entries, {decimal(inventory.size)}: {store.root}")
    return 0


def _verify(arguments: argparse.Namespace, store: Store, inventory: Inventory) -> int:
    artifacts = [entry.key for entry in inventory.entries if entry.finished]
    damaged = {key: damage for key in artifacts if (damage := store.find_damage(key))}
    if arguments.json:
        print_json({"store": str(store.root), "artifacts": len(artifacts), "damaged": damaged})
    else:
        console = Console()
        for damage in damaged.values():
            console.print(damage)
        console.print(f"{len(artifacts) - len(damaged)} of {len(artifacts)} artifacts are undamaged")
        if damaged:
            console.print("run their pipelines again: damaged artifacts are computed again")
    return 1 if damaged else 0


def _collect(arguments: argparse.Namespace, store: Store, inventory: Inventory, runs: Path) -> int:
    if not arguments.dry_run:
        store.prepare()
    limit = None if arguments.max_size is None else int(arguments.max_size * 1e9)
    removed, busy = prune(store, inventory, runs, arguments.older_than, limit, arguments.needed, arguments.dry_run)
    if arguments.json:
        names = {"removed": removed, "in_use": busy}
        print_json({"store": str(store.root), **{name: [asdict(e) for e in some] for name, some in names.items()}})
        return 0
    console = Console()
    if removed:
        console.print(_table(removed))
    for entry in busy:
        console.print(f"{entry.key} is used by a running job and is kept")
    verb = "would be removed" if arguments.dry_run else "removed"
    size = sum(entry.size for entry in removed)
    console.print(f"{len(removed)} of {len(inventory.entries)} entries {verb}, {decimal(size)}")
    return 0


def _table(found: list[Entry]) -> FittedTable:
    rows = []
    for entry in found:
        score = "" if entry.score is None else f"{entry.score:.4f}"
        runs = ", ".join(shown("/".join(Path(run).parts[-2:]), 200) for run in entry.runs) or "none"
        rows.append([entry.key, entry.title, entry.task, score, decimal(entry.size), f"{entry.age:.1f}", runs])
    header = ["key", "stage", "task", "score", "size", "days", "runs"]
    return FittedTable(header, rows, optional=("days", "task", "runs", "size"))
