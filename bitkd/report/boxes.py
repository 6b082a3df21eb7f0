"""A pipeline as boxes in the colours of its states, each with its own metric and cost."""

from dataclasses import dataclass

from bitkd.compare.arms import Arm, Cost
from bitkd.compare.runs import Stage
from bitkd.report import mermaid
from bitkd.report.tables import mean_text, si, time_text

STATES = {
    "finetune": "teacher",
    "general": "task-agnostic FP32",
    "fp32": "task-specific FP32",
    "two": "2-bit",
    "split": "splitting",
    "one": "1-bit",
    "augment": "rows",
}
"""What the colours of bitkd.report.mermaid stand for."""


@dataclass(frozen=True)
class Box:
    """One stage.  metric: with its deviation over seeds, or why there is none.  cost: lines of text.
    follows: whether its student is that of the box before it.
    """

    title: str
    state: str
    metric: str
    cost: list[str]
    follows: bool

    @property
    def colour(self) -> str:
        return colour_of(self.state)


def colour_of(state: str) -> str:
    return mermaid.COLOURS.get(state, "#dddddd")


def state_of(stage: Stage) -> str:
    """Which of STATES a stage's student is in after it."""
    if stage.kind == "augment":
        return stage.kind
    bits = {"W1": 1, "W2": 2}.get(stage.precision.partition("A")[0], 32)
    is_student = stage.kind == "finetune" and stage.in_chain
    return mermaid.state_of("init" if is_student else stage.kind, bits)


def boxes(arm: Arm) -> list[Box]:
    """The stages of an arm in order, the teacher first."""
    return [_box(arm, position) for position in range(len(arm.first.stages))]


def _box(arm: Arm, position: int) -> Box:
    stage, mean = arm.stages()[position]
    cost = Cost.mean([Cost.of([run.stages[position]]) for run in arm.runs])
    lines = ["no training"]
    if cost.seconds and not cost.steps:
        lines = [time_text(cost.seconds)]
    if cost.steps:
        lines = [f"{cost.steps:,.0f} steps", f"{si(cost.flops)} FLOP", time_text(cost.seconds)]
    missing = "no task metric" if stage.is_model else ""
    before = arm.first.stages[position - 1].name if position else None
    follows = before is not None and stage.upstream.get("student") == before
    return Box(stage.title, state_of(stage), mean_text(mean) if mean.count else missing, lines, follows)
