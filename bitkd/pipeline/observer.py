"""The interface of an object that watches a run: the runner calls it when a stage or the run ends."""

from typing import TYPE_CHECKING

from bitkd.pipeline.plan import Plan
from bitkd.pipeline.stage import PlannedStage
from bitkd.processes.signals import Stopping

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger


class Observer:
    """Watches a run on rank zero; by itself it does nothing.

    If a method raises, the run fails. An observer that talks to a server must therefore catch that server's errors.
    """

    def run_started(self, stopping: Stopping) -> None:
        """Called first.  stopping: whether this process was asked to stop; a method that waits must look at it."""

    def loggers(self, plan: Plan, stage: PlannedStage) -> "list[Logger]":
        """Lightning loggers of a stage, besides the CSV files."""
        return []

    def stage_finished(self, plan: Plan, stage: PlannedStage) -> None:
        """A stage's artifact exists, computed now or before."""

    def stage_left(self, plan: Plan, code: int) -> None:
        """A stage has ended.  code: 0 if it is finished, 1 if it failed, else the exit code of a run that was asked to stop."""

    def run_finished(self, plan: Plan) -> None:
        """All stages are finished."""
