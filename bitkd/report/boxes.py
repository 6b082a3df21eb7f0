"""A pipeline as boxes in the colours of its stages, each with its own metric and cost."""

from dataclasses import dataclass

from bitkd.compare.arms import Arm, Cost
from bitkd.compare.runs import Stage
from bitkd.quant.table import weight_bits_of
from bitkd.report.looks import Look, look_of
from bitkd.report.numbers import mean_text, si, time_text
from bitkd.stages.kinds import kind_of


@dataclass(frozen=True)
class Box:
    """One stage."""

    title: str
    look: Look
    metric: str
    """With its deviation over seeds, or why there is none."""

    cost: list[str]
    """Lines of text."""

    follows: bool
    """Whether its student starts from that of the box before it."""


def stage_look(stage: Stage) -> Look:
    """The look of a finished stage."""
    return look_of(kind_of(stage.kind), weight_bits_of(stage.precision), stage.in_chain)


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
    return Box(stage.title, stage_look(stage), mean_text(mean) if mean.count else missing, lines, follows)
