"""The report of a finished run in wandb: final score, table of the stages, pictures and, on request, the student."""

import re
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from bitkd.compare.load import load_run
from bitkd.errors import InputError
from bitkd.pipeline.plan import Plan
from bitkd.report.write import write_report
from bitkd.stages.spec import SCORE
from bitkd.tracking.connection import Connection
from bitkd.tracking.facts import STEP, facts_after, total_steps

REPORT = "report"

PART_SECONDS = 30.0
"""How long one part of the report may take: wandb asks the server about artifacts and tables."""


def log_report(run: Any, plan: Plan, connection: Connection, guard: Callable[[], AbstractContextManager[None]]) -> bool:
    """Log the report into an open wandb run; returns whether the score was logged.

    The score comes first, and each part is in a `guard()` of its own: a part that fails must not cost the others.
    """

    def log(part: Callable[..., None], *arguments: Any) -> bool:
        with guard():
            connection.wait(partial(part, run, *arguments), limit=PART_SECONDS)
            return True
        return False

    scored = log(_log_score, plan)
    log(_log_table, plan)
    with tempfile.TemporaryDirectory() as folder:
        with guard():
            _draw_report(plan, Path(folder))
        log(_log_pictures, Path(folder))
    if plan.config.wandb.artifacts:
        log(_log_student, plan)
    return scored


def _log_score(run: Any, plan: Plan) -> None:
    score = plan.store.load(plan.stages[-1].key).metrics.score
    if score is not None:
        run.log({SCORE: score, STEP: total_steps(plan.stages)})
        run.summary.update({SCORE: score})


def _log_table(run: Any, plan: Plan) -> None:
    import wandb

    rows = [{"stage": stage.name, "title": stage.title} | facts_after(plan, stage) for stage in plan.stages]
    columns: list[Any] = list(dict.fromkeys(key for row in rows for key in row))
    data = [[row.get(key) for key in columns] for row in rows]
    run.log({"stages": wandb.Table(columns=columns, data=data, allow_mixed_types=True)})


def _log_pictures(run: Any, folder: Path) -> None:
    """The pictures (*.png) in `folder`, as media."""
    import wandb

    if found := sorted(folder.glob("*.png")):
        run.log({f"{REPORT}/{file.stem}": wandb.Image(str(file)) for file in found})


def _log_student(run: Any, plan: Plan) -> None:
    import wandb

    final = plan.stages[-1]
    found = plan.store.load(final.key)
    name = re.sub(r"[^\w.-]", "-", f"{plan.config.task.name}-{plan.folder.folder.name}-{final.name}")
    artifact = wandb.Artifact(name, type="model", metadata={"key": final.key, SCORE: found.metrics.score})
    artifact.add_dir(str(plan.store.path(final.key)))
    run.log_artifact(artifact)


def _draw_report(plan: Plan, folder: Path) -> None:
    try:
        run = load_run(plan.folder.folder, to_compare=True)
    except InputError:  # it ends in no student of the task: there is nothing to draw
        return
    write_report([run], folder)
