"""The commands plan and config, which run nothing."""

import argparse
from dataclasses import asdict
from typing import Any

from bitkd.commands.output import print_json
from bitkd.config.load import load_config, to_yaml
from bitkd.pipeline.plan import make_plan
from bitkd.pipeline.replaced import replaced_by
from bitkd.pipeline.study import study_notes, study_text
from bitkd.processes.libraries import quieten
from bitkd.processes.machine import note_emulation
from bitkd.report.console import Console
from bitkd.report.fitted import FittedTable
from bitkd.report.mermaid import draw_graph
from bitkd.report.numbers import DASH, time_text
from bitkd.sources.cache import open_cache
from bitkd.stages.kinds import kind_of


def plan_command(arguments: argparse.Namespace) -> int:
    """Print the stages and their states; returns the exit code."""
    quieten()
    config = load_config(arguments.settings)
    cache = open_cache(config, read_disk=True)
    try:
        plan = make_plan(config, cache)
    finally:
        cache.save()
    note_emulation(config)
    stages, replaced = plan.rows(), replaced_by(plan)
    if arguments.json:
        facts = {"run": str(plan.folder.folder), "store": str(plan.store.root), "stages": stages}
        study = plan.study and asdict(plan.study)
        print_json(facts | {"study": study, "replaces": replaced and asdict(replaced)})
    elif arguments.mermaid:
        print(draw_graph(stages))
    else:
        console = Console()
        console.print(_table(stages))
        for line in _estimated(stages):
            console.print(line)
        console.print(f"run: {plan.folder.folder}\nstore: {plan.store.root}")
        if plan.study is not None:
            named = plan.folder.manifest is not None and plan.folder.manifest.study == plan.study
            console.print(study_text(plan.study, began=named))
        for note in study_notes(config):
            console.print(f"note: {note}")
        if replaced:
            console.print(f"note: {replaced.note(plan.folder.folder.name)}")
    return 0


def _table(stages: list[dict[str, Any]]) -> FittedTable:
    measured = any(row["estimate"] for row in stages)
    header = [
        "",
        "stage",
        "kind",
        "student",
        "teacher",
        "bits",
        "steps",
        "state",
        *(["time", "memory"] if measured else []),
    ]
    rows = []
    for number, row in enumerate(stages, start=1):
        steps = "?" if row["steps"] is None else str(row["steps"])
        if row["saved_step"] is not None:
            steps = f"{row['saved_step']}/{steps}"
        inputs = [row["inputs"].get(role, "") for role in ("student", "teacher")]
        estimate, expected = row["estimate"], []
        if measured:
            expected = [time_text(estimate["seconds"]), _memory(estimate["memory_mib"])] if estimate else ["", ""]
        rows.append([str(number), row["name"], row["kind"], *inputs, row["precision"], steps, row["state"], *expected])
    return FittedTable(header, rows, optional=("kind", "memory", "", "teacher", "student"))


def _memory(mib: float | None) -> str:
    if mib is None:
        return DASH
    return f"{mib:.0f} MiB" if mib < 1000 else f"{mib / 1024:.1f} GiB"


def _estimated(stages: list[dict[str, Any]]) -> list[str]:
    """What the estimates are made of; nothing if there is none."""
    found = [row["estimate"] for row in stages if row["estimate"]]
    if not found:
        return []
    devices = "; ".join(dict.fromkeys(estimate["device"] for estimate in found))
    todo = [row for row in stages if row["state"] != "done" and not row["estimate"]]
    unknown = [row["name"] for row in todo if row["steps"] != 0 or kind_of(row["kind"]).makes_rows]
    rest = f", without {', '.join(unknown)}" if unknown else ""
    total = time_text(sum(estimate["seconds"] for estimate in found))
    return [f"about {total} to go{rest}; as measured before on {devices}"]


def config_command(arguments: argparse.Namespace) -> int:
    """Print the resolved configuration; returns the exit code."""
    config = load_config(arguments.settings, require=())
    if arguments.json:
        print_json(asdict(config))
    else:
        print(to_yaml(config), end="")
    return 0
