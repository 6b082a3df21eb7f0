"""The commands run and augment, which execute stages."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace

from bitkd.api import check_before_imports
from bitkd.commands.output import is_other_rank, print_error, print_json
from bitkd.config.load import load_config
from bitkd.config.schema import BudgetSpec
from bitkd.errors import InputError, StoppedError
from bitkd.pipeline.plan import Plan
from bitkd.processes.libraries import quieten
from bitkd.quant.table import FP32, weight_bits_of
from bitkd.report.console import Console
from bitkd.tracking.agent import with_run_name

EXAMPLES = 10


def run_command(arguments: argparse.Namespace) -> int:
    """Run a pipeline and print its scores; returns the exit code."""
    config = with_run_name(load_config(arguments.settings))
    check_before_imports(config)
    from bitkd.pipeline.runner import run
    from bitkd.tracking import make_observer

    console = _open_console(arguments)
    with _exit_code() as exit_code:
        plan = run(config, console, make_observer(config), progress_bar=console.is_interactive)
        if not is_other_rank():
            _show_run(plan, arguments)
    return exit_code[0]


def augment_command(arguments: argparse.Namespace) -> int:
    """Make a task's augmented rows and print some; returns the exit code."""
    config = load_config([*arguments.settings, "task.augmentation.enabled=true"], require=("task",))
    if config.task.augmentation.path:
        raise InputError("task.augmentation.path= names rows that are made already; leave it out")
    run_spec = replace(config.run, name=config.run.name or "augment")
    config = replace(config, stages={}, budget=BudgetSpec(), run=run_spec)
    check_before_imports(config)
    from bitkd.pipeline.runner import run
    from bitkd.tracking import make_observer

    console = _open_console(arguments)
    with _exit_code() as exit_code:
        plan = run(config, console, make_observer(config))
        if not is_other_rank():
            _show_rows(plan, arguments)
    return exit_code[0]


def _open_console(arguments: argparse.Namespace) -> Console:
    quieten(show_notes=not is_other_rank())
    return Console(stderr=arguments.json)


@contextmanager
def _exit_code() -> Iterator[list[int]]:
    """Report a run that failed or was stopped; the list holds the code to exit with."""
    from lightning.pytorch.utilities import rank_zero_only

    from bitkd.pipeline.runner import StageFailedError

    code = [0]
    try:
        yield code
    except StageFailedError as failure:
        rank = rank_zero_only.rank  # type: ignore[attr-defined]
        print_error(f"{f'rank {rank}: ' if rank else ''}{failure}")
        code[0] = 1
    except StoppedError as stop:
        if not is_other_rank():
            print_error(str(stop))
        code[0] = stop.code


def _show_run(plan: Plan, arguments: argparse.Namespace) -> None:
    from bitkd.compare.load import load_run
    from bitkd.compare.rows import rows_of
    from bitkd.report.terminal import render

    rows = rows_of(load_run(plan.folder.folder))
    if arguments.json:
        print_json({"run": str(plan.folder.folder), "stages": [asdict(row) for row in rows]})
    else:
        console = Console()
        console.print(render(rows))
        console.print(f"run: {plan.folder.folder}")
        if weight_bits_of(rows[-1].precision) < FP32:
            artifact = plan.folder.folder / rows[-1].stage
            console.print(f"next: `bitkd export {artifact} OUT` writes the low-bit student itself")


def _show_rows(plan: Plan, arguments: argparse.Namespace) -> None:
    """Print some of the augmented rows next to their originals."""
    from bitkd.data.augment.augmenter import load_shards

    key = plan.stages[0].key
    folder, record = plan.store.path(key), plan.store.load(key).stage.augmented
    assert record is not None  # a stage that makes rows has one
    rows = load_shards(folder)
    varied = [i for i in range(min(len(rows), 20 * EXAMPLES)) if i and rows[i]["index"] == rows[i - 1]["index"]]
    examples = [rows[i] for i in varied[:: max(1, len(varied) // EXAMPLES)][:EXAMPLES]]
    if arguments.json:
        shown = [
            {name: row[name] for name in ("text_a", "text_b", "label", "index") if name in row} for row in examples
        ]
        print_json({"folder": str(folder), **asdict(record), "examples": shown})
        return
    originals = plan.sources.task_rows.train_texts()
    for row in examples:
        for name in ("text_a", "text_b"):
            if name in row and row[name] != originals[name][row["index"]]:
                print(f"row {row['index']}: {originals[name][row['index']]}\n    -> {row[name]}")
    print(f"{record.rows} rows of {record.sources}: {folder}")
