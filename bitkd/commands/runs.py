"""Commands on pipelines and their runs: run, plan, augment, compare, config."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from rich.table import Table

from bitkd.callbacks.checkpoints import StoppedError
from bitkd.commands.output import is_other_rank, make_console, print_json, quieten
from bitkd.config.load import load_config, to_yaml
from bitkd.data.augment import load_shards
from bitkd.errors import InputError
from bitkd.pipeline.plan import make_plan
from bitkd.pipeline.record import RunRecord
from bitkd.pipeline.runner import StageFailedError, run
from bitkd.pipeline.store import read_artifact
from bitkd.report.comparison import RunData, compare_rows, render, write_report
from bitkd.report.mermaid import draw_graph

EXAMPLES = 10

STOPPED = 75
"""Exit code of a run that SIGTERM or SIGUSR1 stopped (sysexits' EX_TEMPFAIL: try again)."""


def run_command(arguments: argparse.Namespace) -> int:
    quieten()
    console = make_console(stderr=arguments.json)
    config = load_config(arguments.settings)
    try:
        plan = run(config, console, progress_bar=console.is_terminal)
    except StageFailedError as failure:
        rank = rank_zero_only.rank  # type: ignore[attr-defined]
        print(f"bitkd: {f'rank {rank}: ' if rank else ''}{failure}", file=sys.stderr, flush=True)
        return 1
    except StoppedError as stop:
        if not is_other_rank():
            print(f"bitkd: {stop}", file=sys.stderr, flush=True)
        return STOPPED
    if is_other_rank():
        return 0
    rows = compare_rows([_run_data(plan.record.folder)])
    if arguments.json:
        print_json({"run": str(plan.record.folder), "stages": [asdict(row) for row in rows]})
    else:
        console.print(render(rows))
        console.print(f"run: {plan.record.folder}")
    return 0


def plan_command(arguments: argparse.Namespace) -> int:
    quieten()
    plan = make_plan(load_config(arguments.settings))
    stages: list[dict[str, Any]] = []
    for stage in plan.stages:
        path = plan.store.path(stage.key)
        stages.append(
            {
                "name": stage.name,
                "kind": stage.spec.kind,
                "title": stage.title,
                "inputs": stage.upstream,
                "bits": stage.spec.quant.weight_bits,
                "steps": stage.total_steps if stage.settled or stage.train.max_steps else None,
                "fingerprint": stage.fingerprint,
                "state": plan.state(stage),
                "artifact": str(path) if plan.store.finished(stage.key) else None,
            }
        )
    if arguments.json:
        print_json({"run": str(plan.record.folder), "store": str(plan.store.root), "stages": stages})
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
        console.print(f"run: {plan.record.folder}\nstore: {plan.store.root}")
    return 0


def augment_command(arguments: argparse.Namespace) -> int:
    quieten()
    console = make_console(stderr=arguments.json)
    config = load_config([*arguments.settings, "task.augmentation.enabled=true"], require=("task",))
    if config.task.augmentation.path:
        raise InputError("task.augmentation.path= names rows that are made already; leave it out")
    config.stages, config.run.name = {}, config.run.name or "augment"
    try:
        plan = run(config, console)
    except StageFailedError as failure:
        print(f"bitkd: {failure}", file=sys.stderr, flush=True)
        return 1
    except StoppedError as stop:
        print(f"bitkd: {stop}", file=sys.stderr, flush=True)
        return STOPPED
    if is_other_rank():
        return 0
    folder = plan.store.path(plan.stages[0].key)
    facts = read_artifact(folder).stage["augmented"]
    rows = load_shards(folder)
    varied = [i for i in range(min(len(rows), 20 * EXAMPLES)) if i and rows[i]["index"] == rows[i - 1]["index"]]
    examples = [rows[i] for i in varied[:: max(1, len(varied) // EXAMPLES)][:EXAMPLES]]
    if arguments.json:
        shown = [
            {name: row[name] for name in ("text_a", "text_b", "label", "index") if name in row} for row in examples
        ]
        print_json({"folder": str(folder), **facts, "examples": shown})
        return 0
    originals = plan.sources.task_data.train_texts()
    for row in examples:
        for name in ("text_a", "text_b"):
            if name in row and row[name] != originals[name][row["index"]]:
                print(f"row {row['index']}: {originals[name][row['index']]}\n    -> {row[name]}")
    print(f"{facts['rows']} rows of {facts['sources']}: {folder}")
    return 0


def compare_command(arguments: argparse.Namespace) -> int:
    runs = [_run_data(Path(folder)) for folder in arguments.runs]
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


def config_command(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.settings, require=())
    if arguments.json:
        print_json(asdict(config))
    else:
        print(to_yaml(config), end="")
    return 0


def _run_data(folder: Path) -> RunData:
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
