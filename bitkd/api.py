"""Running a pipeline from Python, with the settings of the command line."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitkd.config.load import GROUPS, load_config
from bitkd.config.schema import Config
from bitkd.pipeline.checks import check_paths
from bitkd.pipeline.plan import check_settings
from bitkd.processes.libraries import quieten, set_environment
from bitkd.processes.machine import check_machine
from bitkd.processes.signals import exit_with_parent
from bitkd.tracking.agent import with_run_name

if TYPE_CHECKING:
    from bitkd.compare.runs import Stage
    from bitkd.pipeline.context import Console


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    folder: Path
    """The run's folder: manifest, configuration, logs, and a link to each stage's artifact under the stage's name."""

    stages: "list[Stage]"
    """The stages in the graph's order: scores, sizes, costs."""

    @property
    def score(self) -> float | None:
        """The final student's primary metric on the first dev set, larger is better."""
        return self.stages[-1].score

    @property
    def student(self) -> Path:
        """Folder of the final student, for `load_student`."""
        return self.folder / self.stages[-1].name


def run(pipeline: str | None = None, *settings: str, console: "Console | None" = None, **values: Any) -> RunResult:
    """Run a pipeline to its end: finished stages are skipped, a stage that was stopped is resumed.

        result = bitkd.run("singlestage", "run.dir=build/runs", "train.max_steps=20", task="demo", seed=1)
        student = bitkd.load_student(result.student)

    pipeline: a name in conf/pipeline, or a path to a YAML file; None with `recipe="xtc-6l-w1a8"`.
    settings: key=value, as `bitkd run` takes them.
    values: the same as keyword arguments; a dotted key goes into a dictionary: `**{"train.lr": 1e-4}`. None is `null`.
    console: gets a line at each stage's start and end, by its `print`; None prints to the standard output. Lightning's
    routine messages are hidden.

    Raises InputError before any work starts, bitkd.StageFailedError while working, StoppedError if the process is asked to
    stop (SIGTERM, SIGUSR1, Ctrl-C): run it again to continue. With `trainer.devices` > 1 every process gets the result.
    """
    files = [f"{key}={values.pop(key)}" for key in GROUPS if key in values]
    config = with_run_name(
        load_config([*([f"pipeline={pipeline}"] if pipeline else []), *settings, *files], values=values)
    )
    check_before_imports(config)
    set_environment()
    if "LOCAL_RANK" in os.environ:  # one of the processes that Lightning or torchrun starts
        exit_with_parent()
    from rich.console import Console as Terminal

    from bitkd.compare.load import load_run
    from bitkd.pipeline.runner import run as run_config
    from bitkd.tracking import make_observer

    quieten()
    plan = run_config(config, console or Terminal(soft_wrap=True, highlight=False, markup=False), make_observer(config))
    return RunResult(plan.folder.folder, load_run(plan.folder.folder).stages)


def check_before_imports(config: Config) -> None:
    """Check settings, paths and processors before any work. torch, whose import takes seconds, is imported only if the
    settings ask for a special processor. Raises InputError if one is wrong."""
    check_settings(config)
    check_paths(config)
    check_machine(config.trainer)
