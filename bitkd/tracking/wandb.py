"""Tracks a run with wandb, besides the CSV files that are always written.

In wandb a run is a group: a wandb run for each stage (its name is the job type), and one for the whole (`report`) with the table
of stages and the pictures. A stage that is resumed is a new wandb run of the group, because an offline one cannot be
continued. Under `wandb agent`, which counts wandb runs as trials, all of it is one wandb run: keys begin with the stage's name,
steps count on from stage to stage, and `dev/score` is the final student's.

An error here is reported in one line and the run continues: a training must not fail because wandb does. For the same reason
wandb is imported inside the functions, which catch its errors. `connection.py` has what a missing server needs.
"""

import contextlib
import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from bitkd.errors import StoppedError
from bitkd.files import read_json, write_json
from bitkd.pipeline.observer import Observer
from bitkd.pipeline.plan import Plan
from bitkd.pipeline.stage import PlannedStage
from bitkd.processes.signals import STOPPED, Stopping
from bitkd.tracking.agent import under_agent
from bitkd.tracking.connection import Connection, WaitEndedError
from bitkd.tracking.facts import STEP, facts_after, facts_before, settings_of_run, total_steps
from bitkd.tracking.report import REPORT, log_report

log = logging.getLogger(__name__)

REPORTED_FILE = "report.json"
"""File beside the logs: stage -> key of the artifacts that the report in wandb shows."""

PROJECT = "bitkd"
"""Project of the runs, if neither the setting wandb.project nor WANDB_PROJECT names one."""


@contextlib.contextmanager
def _harmless(failures: list[Exception] | None = None) -> Iterator[None]:
    """Report an error in one line, and continue.  failures: gets the error."""
    try:
        yield
    except StoppedError:
        raise
    except Exception as error:
        if failures is not None:
            failures.append(error)
        if isinstance(error, WaitEndedError):
            return
        cause = next(iter(str(error).splitlines()), "")
        log.warning("wandb: %s: %s; the run continues with its CSV files", type(error).__name__, cause)


class WandbObserver(Observer):
    """Writes each stage, and at the end the whole run, to wandb."""

    def __init__(self) -> None:
        self._stopping: Stopping | None = None
        self._connection = Connection(lambda: self._stopping is not None and self._stopping.requested)

    def run_started(self, stopping: Stopping) -> None:
        self._stopping = stopping

    def loggers(self, plan: Plan, stage: PlannedStage) -> list[Logger]:
        with _harmless():
            run = self._open_run(plan, stage.name, {"stage": facts_before(stage)})
            return [_TrialLogger(plan, stage, run) if under_agent() else _StageLogger(experiment=run)]
        return []

    @_harmless()
    def stage_finished(self, plan: Plan, stage: PlannedStage) -> None:
        """The stage's results, into the summary of its wandb run; under an agent also of a stage that was skipped."""
        import wandb

        if under_agent():
            self._open_run(plan, stage.name)
        if wandb.run is not None:
            prefix = f"{stage.name}/" if under_agent() else ""
            facts = facts_after(plan, stage)
            wandb.run.summary.update({f"{prefix}{key}": value for key, value in facts.items() if value is not None})

    @_harmless()
    def stage_left(self, plan: Plan, code: int) -> None:
        """Finish the stage's wandb run, so that the next stage starts a new one. The wandb run of a trial stays open
        until the trial ends."""
        if under_agent() and code == 0:
            return
        import wandb

        if under_agent() and code == STOPPED and wandb.run is not None:
            wandb.run.mark_preempting()  # the sweep gives the trial to an agent again
        self._connection.finish(code)

    def run_finished(self, plan: Plan) -> None:
        """Log the final score, the table of the stages, the report's pictures and, on request, the final student.

        This is done once for the same stages, even if the run is started again. Under an agent it is done at each
        start, because each start is a separate trial.
        """
        keys = {stage.name: stage.key for stage in plan.stages}
        reported = plan.folder.logs / REPORTED_FILE
        if read_json(reported) == keys and not under_agent():
            return
        failures: list[Exception] = []
        scored = False
        with _harmless(failures):
            run = self._open_run(plan, REPORT, {"stages": {stage.name: facts_before(stage) for stage in plan.stages}})
            scored = log_report(run, plan, self._connection, partial(_harmless, failures))
        with _harmless(failures):
            if not failures:
                write_json(reported, keys)
        with _harmless():
            # A sweep needs nothing but the score of a trial.
            good = scored if under_agent() else not failures
            self._connection.finish(0 if good else 1)

    def _open_run(self, plan: Plan, job: str, more: Mapping[str, Any] | None = None) -> Any:
        """The open wandb run, or a new one. Raises WaitEndedError if this process was asked to stop."""
        config, name = plan.config, plan.folder.folder.name
        upload = config.wandb.artifacts and (job == REPORT or under_agent())
        settings: dict[str, Any]
        if under_agent():  # the sweep determines the project and the id
            stages = {stage.name: facts_before(stage) for stage in plan.stages}
            settings = {"name": name, "job_type": "trial", "config": settings_of_run(plan) | {"stages": stages}}
            settings["resume"] = "allow"  # an agent may get the same trial again: it continues
        else:
            settings = {"job_type": job, "name": f"{name}/{job}", "config": settings_of_run(plan) | dict(more or {})}
            # Not WANDB_RUN_ID, which would be one id for all stages.
            settings |= {"id": secrets.token_hex(4), "entity": config.wandb.entity}
            settings["project"] = config.wandb.project or os.environ.get("WANDB_PROJECT") or PROJECT
        run = self._connection.open(plan.folder.logs, upload, group=f"{config.task.name}-{name}", **settings)
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP, step_sync=True)
        return run


class _StageLogger(WandbLogger):
    """If wandb fails during a training, that is reported once and nothing more is logged."""

    _failed = False

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self._failed:
            return
        self._failed = True
        with _harmless():
            super().log_metrics(metrics, step)
            self._failed = False

    def finalize(self, status: str) -> None:
        with _harmless():
            super().finalize(status)


class _TrialLogger(_StageLogger):
    """Logs one stage into a wandb run that all stages of a trial share."""

    LOGGER_JOIN_CHAR = "/"

    def __init__(self, plan: Plan, stage: PlannedStage, run: Any) -> None:
        super().__init__(experiment=run, prefix=stage.name)
        self._before = total_steps(plan.stages[: plan.stages.index(stage)])

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics(metrics, None if step is None else self._before + step)
