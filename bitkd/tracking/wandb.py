"""Tracks a run with wandb, besides the CSV files that are always written.

In wandb a run is a group: a wandb run for each stage (its name is the job type), and one for the whole (`report`) with the table
of stages and the pictures. A stage that is resumed is a new wandb run of the group, because an offline one cannot be
continued. Under `wandb agent`, which counts wandb runs as trials, all of it is one wandb run: keys begin with the stage's name,
steps count on from stage to stage, and `dev/score` is the final student's.

An error here is reported in one line and the run continues: a training must not fail because wandb does. For the same reason
wandb is imported inside the functions, which catch its errors.
"""

import contextlib
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from bitkd.compare.load import load_run
from bitkd.errors import InputError, StoppedError
from bitkd.files import read_json, write_json
from bitkd.pipeline.observer import Observer
from bitkd.pipeline.plan import Plan
from bitkd.pipeline.stage import PlannedStage
from bitkd.processes.signals import STOPPED
from bitkd.report.write import write_report
from bitkd.stages.spec import SCORE
from bitkd.tracking.agent import under_agent

log = logging.getLogger(__name__)

REPORT = "report"

REPORTED_FILE = "report.json"
"""File beside the logs: stage -> key of the artifacts that the report in wandb shows."""

STEP = "trainer/global_step"
"""Lightning's name for the axis of all metrics."""


@contextlib.contextmanager
def _harmless() -> Iterator[None]:
    try:
        yield
    except StoppedError:
        raise
    except Exception as error:
        cause = next(iter(str(error).splitlines()), "")
        log.warning("wandb: %s: %s; the run continues with its CSV files", type(error).__name__, cause)


class WandbObserver(Observer):
    """Writes each stage, and at the end the whole run, to wandb."""

    def loggers(self, plan: Plan, stage: PlannedStage) -> list[Logger]:
        with _harmless():
            run = _open_run(plan, stage.name, {"stage": _facts_before(stage)})
            return [_TrialLogger(plan, stage, run) if under_agent() else _StageLogger(experiment=run)]
        return []

    @_harmless()
    def stage_finished(self, plan: Plan, stage: PlannedStage) -> None:
        """The stage's results, into the summary of its wandb run; under an agent also of a stage that was skipped."""
        import wandb

        if under_agent():
            _open_run(plan, stage.name)
        if wandb.run is not None:
            prefix = f"{stage.name}/" if under_agent() else ""
            facts = _facts_after(plan, stage)
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
        wandb.finish(exit_code=code)

    def run_finished(self, plan: Plan) -> None:
        """Log the table of the stages, the report's pictures, the final score and, on request, the final student.

        This is done once for the same stages, even if the run is started again. Under an agent it is done at each
        start, because each start is a separate trial.
        """
        keys = {stage.name: stage.key for stage in plan.stages}
        reported = plan.folder.logs / REPORTED_FILE
        if read_json(reported) == keys and not under_agent():
            return
        with _harmless():
            _report_run(plan)
            write_json(reported, keys)
        with _harmless():
            import wandb

            wandb.finish()


def _report_run(plan: Plan) -> None:
    import wandb

    final = plan.stages[-1]
    rows = [{"stage": stage.name, "title": stage.title} | _facts_after(plan, stage) for stage in plan.stages]
    run = _open_run(plan, REPORT, {"stages": {stage.name: _facts_before(stage) for stage in plan.stages}})
    with tempfile.TemporaryDirectory() as folder:
        with _harmless():
            _draw_report(plan, Path(folder))
        _log_report(Path(folder), rows)
    score = rows[-1].get(SCORE)
    if score is not None:
        run.log({SCORE: score, STEP: _steps(plan.stages)})
        run.summary.update({SCORE: score})
    if plan.config.wandb.artifacts:
        name = re.sub(r"[^\w.-]", "-", f"{plan.config.task.name}-{plan.folder.folder.name}-{final.name}")
        artifact = wandb.Artifact(name, type="model", metadata={"key": final.key, SCORE: score})
        artifact.add_dir(str(plan.store.path(final.key)))
        run.log_artifact(artifact)


def _draw_report(plan: Plan, folder: Path) -> None:
    try:
        run = load_run(plan.folder.folder, to_compare=True)
    except InputError:  # it ends in no student of the task: there is nothing to draw
        return
    write_report([run], folder)


def _log_report(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table of `rows`, and the pictures (*.png) in `folder` as media, into the open wandb run."""
    import wandb

    columns: list[Any] = list(dict.fromkeys(key for row in rows for key in row))
    table = wandb.Table(
        columns=columns, data=[[row.get(key) for key in columns] for row in rows], allow_mixed_types=True
    )
    pictures = {f"{REPORT}/{file.stem}": wandb.Image(str(file)) for file in sorted(folder.glob("*.png"))}
    assert wandb.run is not None
    wandb.run.log({"stages": table} | pictures)


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
        self._before = _steps(plan.stages[: plan.stages.index(stage)])

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics(metrics, None if step is None else self._before + step)


def _open_run(plan: Plan, job: str, more: Mapping[str, Any] | None = None) -> Any:
    """The open wandb run, or a new one: offline if there is no key, and never with a prompt."""
    import wandb

    if wandb.run is not None:
        return wandb.run
    config, name = plan.config, plan.folder.folder.name
    settings: dict[str, Any] = {"job_type": job, "name": f"{name}/{job}", "config": _config(plan) | dict(more or {})}
    settings |= {"project": config.wandb.project, "entity": config.wandb.entity}
    if under_agent():  # the sweep determines the project
        stages = {stage.name: _facts_before(stage) for stage in plan.stages}
        settings = {"name": name, "job_type": "trial", "config": _config(plan) | {"stages": stages}}
        settings["resume"] = "allow"  # an agent may get the same trial again: it continues
    mode = os.environ.get("WANDB_MODE") or "online"
    if mode == "online" and not wandb.login(prompt=False, verify=False):
        mode = "offline"
    plan.folder.logs.mkdir(parents=True, exist_ok=True)
    run = wandb.init(group=f"{config.task.name}-{name}", dir=str(plan.folder.logs), mode=mode, **settings)  # type: ignore[arg-type]
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP, step_sync=True)
    return run


def _config(plan: Plan) -> dict[str, Any]:
    """The run's settings, under the key `settings`: an agent locks the names of the sweep's parameters, such as `task`
    and `pipeline`."""
    config = plan.config
    names = {} if under_agent() else {"task": config.task.name, "pipeline": config.pipeline.name, "seed": config.seed}
    return names | {"settings": asdict(config)}


def _steps(stages: Sequence[PlannedStage]) -> int:
    """Optimizer steps of stages together."""
    return sum(stage.total_steps for stage in stages if stage.trains)


def _facts_before(stage: PlannedStage) -> dict[str, Any]:
    quant = stage.spec.quant
    return {
        "name": stage.name,
        "kind": stage.kind.name,
        "title": stage.title,
        "weight_bits": quant.weight_bits,
        "activation_bits": quant.activation_bits,
        "lr": stage.train.lr,
        "batch_size": stage.train.batch_size,
        "steps": stage.total_steps if stage.trains else 0,
        "seed": stage.seed,
        "key": stage.key,
    }


def _facts_after(plan: Plan, stage: PlannedStage) -> dict[str, Any]:
    """Numbers of a finished stage: metrics of every dev set, sizes, and what it cost."""
    artifact = plan.store.load(stage.key)
    record, metrics = artifact.stage, artifact.metrics
    facts: dict[str, Any] = {SCORE: metrics.score}
    for name, values in metrics.sets.items():
        facts |= {f"{name}/{key}": value for key, value in values.items()}
    for section, found in (("size", record.size), ("flops", record.flops)):
        facts |= {f"{section}/{key}": value for key, value in (asdict(found) if found else {}).items()}
    return facts | {"steps": record.steps, "examples": record.examples, "seconds": record.seconds}
