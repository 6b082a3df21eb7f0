"""Learning curves, stage after stage on one axis."""

import statistics
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from bitkd.compare.arms import Arm
from bitkd.compare.comparison import Comparison
from bitkd.data.tasks import HOLDOUT
from bitkd.report.boxes import stage_look
from bitkd.report.looks import SPLITTING, Look, in_order
from bitkd.report.style import INK, MUTED, PAPER, arm_colour, arm_marker, legend_lines, wrapped


def draw_curves(comparison: Comparison) -> Figure:
    """Scores over the cumulative steps of the chain; below, which stage each arm is in."""
    arms = comparison.arms
    columns = 3 if all(len(arm.label) <= 26 for arm in arms) else 2
    names = [wrapped(arm.label, 24 if columns == 3 else 44) for arm in arms]
    lanes = [wrapped(arm.label, 27, 3) for arm in arms]
    lane = 0.3 + 0.12 * max(name.count("\n") for name in lanes)
    figure = Figure(layout="constrained")
    top, strip = figure.subplots(2, sharex=True, height_ratios=[3.2, (lane + 0.02) * len(arms) + 0.1])
    handles = []
    for position, arm in enumerate(arms):
        # Arms share stages: what lies below stays visible as a border.
        _curve(top, arm, arm_colour(position), arm_marker(position), 1 + (len(arms) - 1 - position) / len(arms))
        handles.append(
            Line2D(
                [],
                [],
                color=arm_colour(position),
                marker=arm_marker(position),
                linestyle="-",
                label=names[position],
                markersize=6,
            )
        )
    handles += reference_lines(top, comparison)
    total = max(max(arm.chain.steps for arm in arms), 1)
    looks = [_strip(strip, arm, len(arms) - 1 - row) for row, arm in enumerate(arms)]
    has_holdout = any(HOLDOUT in run.final.dev for run in comparison.runs)
    top.set_ylabel(f"{comparison.metric_text}\n({'hold-out; ends of stages: dev' if has_holdout else 'dev'})")
    top.margins(y=0.08)
    strip.set_ylim(-0.6, len(arms) - 0.4)
    strip.set_yticks(range(len(arms)), lanes[::-1], fontsize=9 if lane == 0.3 else 7.5)
    strip.tick_params(length=0)
    strip.grid(visible=False)
    strip.spines["left"].set_visible(False)
    strip.set_xlim(-0.015 * total, 1.02 * total)
    strip.set_xlabel("optimizer steps of the chain, stage after stage\n(the teacher's apart)")
    strip.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    figure.legend(handles=handles, loc="outside upper left", ncols=columns)
    lines = legend_lines([str(handle.get_label()) for handle in handles], columns)
    figure.set_size_inches(6.8, 4.1 + lane * len(arms) + 0.16 * max(0, lines - 3))
    patches = [
        Patch(
            facecolor=look.colour,
            edgecolor=MUTED,
            linewidth=0.6,
            hatch=_hatch(look),
            label=look.label + ("" if look.has_metric else ": no task metric"),
        )
        for look in in_order(look for found in looks for look in found)
    ]
    figure.legend(handles=patches, loc="outside lower left", ncols=3)
    return figure


def _curve(axes: Axes, arm: Arm, colour: str, marker: str, weight: float) -> None:
    """One arm: each seed thin, their mean thick if they were validated at the same steps; a marker ends each stage."""
    ends: list[tuple[float, float]] = []
    offset = 0.0
    for position, (stage, mean) in enumerate(arm.stages()):
        if not stage.in_chain:
            continue
        if mean.mean is not None:
            curves = [run.stages[position].curve for run in arm.runs]
            steps = [offset + step for step, _ in curves[0]]
            for curve in curves if len(curves) > 1 else []:
                axes.plot(
                    [offset + step for step, _ in curve],
                    [score for _, score in curve],
                    color=colour,
                    lw=0.7,
                    alpha=0.45,
                )
            if all([step for step, _ in curve] == [step for step, _ in curves[0]] for curve in curves):
                middle = [statistics.fmean(score for _, score in scores) for scores in zip(*curves)]
                alone = "." if len(steps) == 1 else None
                axes.plot(steps, middle, marker=alone, color=colour, linewidth=1.6 * weight, markersize=5)
            ends.append((offset + stage.steps, mean.mean))
        offset += stage.steps
    if not ends:  # a run with only a teacher has no chain
        return
    axes.plot(*zip(*ends), color=colour, linestyle=":", linewidth=1, zorder=3)
    axes.plot(*zip(*ends), marker, color=colour, markersize=5.5 * weight, markeredgecolor=PAPER, mew=0.8, zorder=4)


def _strip(axes: Axes, arm: Arm, row: int) -> set[Look]:
    """The arm's stages as spans in the colours of their looks; returns the looks."""
    found: set[Look] = set()
    offset = 0.0
    for stage in (stage for stage in arm.first.stages if stage.in_chain):
        look = stage_look(stage)
        if stage.steps:
            found.add(look)
            axes.broken_barh(
                [(offset, stage.steps)],
                (row - 0.34, 0.68),
                facecolor=look.colour,
                edgecolor=PAPER,
                linewidth=1,
                hatch=_hatch(look),
            )
        elif look == SPLITTING:
            found.add(look)
            axes.plot(offset, row, marker="D", color=look.colour, markeredgecolor=INK, markeredgewidth=0.7, zorder=5)
        offset += stage.steps
    return found


def _hatch(look: Look) -> str | None:
    return None if look.has_metric else "////"


def reference_lines(axes: Axes, comparison: Comparison) -> list[Line2D]:
    """The teacher and the baseline, and their entries for a legend."""
    handles = []
    lines: list[tuple[str, float | None, Any]] = [
        ("teacher", comparison.teacher.mean, "--"),
        (comparison.first.form.short, comparison.majority, ":"),
    ]
    for label, value, style in lines:
        if value is not None:
            axes.axhline(value, color=MUTED, linestyle=style, linewidth=1.3)
            handles.append(Line2D([], [], color=MUTED, linestyle=style, label=f"{label} {value:.3f}"))
    return handles
