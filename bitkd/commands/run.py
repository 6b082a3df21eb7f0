"""Commands that work through a graph: run, augment."""

import argparse
import sys
from dataclasses import asdict

from lightning.pytorch.utilities import rank_zero_only

from bitkd.commands.output import is_other_rank, make_console, print_json, quieten
from bitkd.compare.finished import read_finished
from bitkd.compare.rows import rows_of
from bitkd.config.load import load_config
from bitkd.config.schema import BudgetSpec
from bitkd.data.augment.augmenter import load_shards
from bitkd.errors import InputError, StoppedError
from bitkd.pipeline.runner import StageFailedError, run
from bitkd.report.terminal import render
from bitkd.store.artifacts import read_artifact
from bitkd.tracking.wandb import trial_name

EXAMPLES = 10


def run_command(arguments: argparse.Namespace) -> int:
    quieten(speaks=not is_other_rank())
    console = make_console(stderr=arguments.json)
    config = load_config(arguments.settings)
    config.run.name = config.run.name or trial_name(config.pipeline.name)
    try:
        plan = run(config, console, progress_bar=console.is_terminal)
    except StageFailedError as failure:
        rank = rank_zero_only.rank  # type: ignore[attr-defined]
        print(f"bitkd: {f'rank {rank}: ' if rank else ''}{failure}", file=sys.stderr, flush=True)
        return 1
    except StoppedError as stop:
        if not is_other_rank():
            print(f"bitkd: {stop}", file=sys.stderr, flush=True)
        return stop.code
    if is_other_rank():
        return 0
    rows = rows_of(read_finished(plan.record.folder))
    if arguments.json:
        print_json({"run": str(plan.record.folder), "stages": [asdict(row) for row in rows]})
    else:
        console.print(render(rows))
        console.print(f"run: {plan.record.folder}")
    return 0


def augment_command(arguments: argparse.Namespace) -> int:
    quieten(speaks=not is_other_rank())
    console = make_console(stderr=arguments.json)
    config = load_config([*arguments.settings, "task.augmentation.enabled=true"], require=("task",))
    if config.task.augmentation.path:
        raise InputError("task.augmentation.path= names rows that are made already; leave it out")
    config.stages, config.budget, config.run.name = {}, BudgetSpec(), config.run.name or "augment"
    try:
        plan = run(config, console)
    except StageFailedError as failure:
        print(f"bitkd: {failure}", file=sys.stderr, flush=True)
        return 1
    except StoppedError as stop:
        print(f"bitkd: {stop}", file=sys.stderr, flush=True)
        return stop.code
    if is_other_rank():
        return 0
    folder = plan.store.path(plan.stages[0].key)
    facts = read_artifact(folder).stage.augmented
    assert facts
    rows = load_shards(folder)
    varied = [i for i in range(min(len(rows), 20 * EXAMPLES)) if i and rows[i]["index"] == rows[i - 1]["index"]]
    examples = [rows[i] for i in varied[:: max(1, len(varied) // EXAMPLES)][:EXAMPLES]]
    if arguments.json:
        shown = [
            {name: row[name] for name in ("text_a", "text_b", "label", "index") if name in row} for row in examples
        ]
        print_json({"folder": str(folder), **vars(facts), "examples": shown})
        return 0
    originals = plan.sources.task_data.train_texts()
    for row in examples:
        for name in ("text_a", "text_b"):
            if name in row and row[name] != originals[name][row["index"]]:
                print(f"row {row['index']}: {originals[name][row['index']]}\n    -> {row[name]}")
    print(f"{facts.rows} rows of {facts.sources}: {folder}")
    return 0
