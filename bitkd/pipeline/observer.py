"""Who watches a run: informed of its stages and its end, without the runner knowing who it is."""

from typing import TYPE_CHECKING

from bitkd.pipeline.plan import Plan
from bitkd.pipeline.stage import PlannedStage

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger


class Observer:
    """Watches a run on rank zero; by itself it does nothing.

    A method that fails fails the run: one that talks to a server has to catch what may go wrong there.
    """

    def loggers(self, plan: Plan, stage: PlannedStage) -> "list[Logger]":
        """Lightning loggers of a stage, besides the CSV files."""
        return []

    def stage_finished(self, plan: Plan, stage: PlannedStage) -> None:
        """A stage's artifact exists, computed now or before."""

    def stage_left(self, plan: Plan, code: int) -> None:
        """A stage is left.  code: 0 if it is finished, 1 if it failed, else the exit code of a run that was asked to stop."""

    def run_finished(self, plan: Plan) -> None:
        """All stages are finished."""
