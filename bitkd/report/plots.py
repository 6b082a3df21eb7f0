"""The report's pictures by matplotlib: PNG for files, SVG whose colours a page sets with CSS variables."""

import io
import re
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bitkd.report.arms import Arm, in_chain
from bitkd.report.boxes import STATES, Box, boxes, colour_of, state_of
from bitkd.report.records import HOLDOUT
from bitkd.report.summary import Comparison, si, size_text

INK, MUTED, GRID, PAPER = "#1b1b1c", "#65656b", "#dcdce0", "#fffffe"
ARMS = ("#0072b2", "#d55e00", "#009e73", "#b0418a", "#56b4e9", "#a97900", "#5a5a66")
"""Okabe and Ito's palette, for all kinds of colour vision, three of them darker so that lines hold on white."""

MARKERS = "os^DvPX*"
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--paper"} | {
    colour: f"--arm{number}" for number, colour in enumerate(ARMS)
}
"""The page's CSS variables, by the colours that stand for them in an SVG."""

STYLE: Any = {
    "font.size": 10,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "axes.titlesize": 11,
    "figure.facecolor": PAPER,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.markeredgewidth": 1.3,
    "text.color": INK,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "svg.fonttype": "none",
    "hatch.linewidth": 0.6,
}
LOG_FROM = 15
"""Largest value / smallest value from which an axis is logarithmic."""


def draw(comparison: Comparison) -> dict[str, Figure]:
    """The pictures by name: score against size, against cost, learning curves, pipelines."""
    pictures: dict[str, Callable[[Comparison], Figure]] = {
        "size": draw_size,
        "cost": draw_cost,
        "curves": draw_curves,
        "pipelines": draw_pipelines,
    }
    with matplotlib.rc_context(STYLE):
        return {name: picture(comparison) for name, picture in pictures.items()}


def to_png(figure: Figure) -> bytes:
    """The same bytes for the same figure: no date, no version."""
    stream = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(stream, format="png", dpi=160, metadata={"Software": None})
    return stream.getvalue()


def to_svg(figure: Figure, name: str, description: str) -> str:
    """An <svg> element for a page. `name` makes its ids its own."""
    stream = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None})
    text = stream.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{name}-", text)
    text = re.sub(r"'DejaVu Sans'[^;\"]*sans-serif", "system-ui, sans-serif", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    size = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', text)
    if size:
        text = text.replace(size[0], f'role="img" aria-label="{description}"', 1)
    return text


def _colour(position: int) -> str:
    return ARMS[position % len(ARMS)]


def _marker(position: int) -> str:
    return MARKERS[position % len(MARKERS)]


def _spread(values: list[float]) -> bool:
    return bool(values) and min(values) > 0 and max(values) / min(values) >= LOG_FROM


def _scale(axes: Axes, values: list[float], text: Callable[[float], str]) -> None:
    """A linear axis, from 0 unless the values are close to each other, or a logarithmic one where their range needs it."""
    formatter = FuncFormatter(lambda value, _: text(value))
    if _spread(values):
        axes.set_xscale("log")
        wide = max(values) / min(values) > 300
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 3.0)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(min(values) / 1.6, max(values) * 1.6)
    else:
        low, high = min(values, default=0), max(values, default=1)
        margin = 0.12 * max(high - low, 0.2 * high)
        axes.set_xlim(low - margin if low > high / 2 else 0, high + margin)
        axes.locator_params(axis="x", nbins=6)
    axes.xaxis.set_major_formatter(formatter)


def _lines(axes: Axes, comparison: Comparison) -> list[Line2D]:
    """The teacher and the majority, and their entries for a legend."""
    handles = []
    lines: list[tuple[str, float | None, Any]] = [
        ("teacher", comparison.teacher.mean, "--"),
        ("majority", comparison.majority, ":"),
    ]
    for label, value, style in lines:
        if value is not None:
            axes.axhline(value, color=MUTED, linestyle=style, linewidth=1.3)
            handles.append(Line2D([], [], color=MUTED, linestyle=style, label=f"{label} {value:.3f}"))
    return handles


def _scatter(
    comparison: Comparison,
    pairs: Sequence[tuple[float, float | None]],
    solid: str,
    hollow: str,
    text: Callable[[float], str],
) -> tuple[Figure, Axes]:
    """Final scores over `pairs` of x values for each arm: a solid marker, and a hollow one where there is a second."""
    figure = Figure(figsize=(4.6, 4.1), layout="constrained")
    axes = figure.add_subplot()
    handles = []
    for position, (arm, (x, second)) in enumerate(zip(comparison.arms, pairs)):
        colour, marker, final = _colour(position), _marker(position), arm.final
        # Of points at one place, those below stay visible.
        size = 7.5 + 3 * (1 - (position + 1) / len(comparison.arms))
        if final.mean is None:
            continue
        if second is not None and second != x:
            axes.plot([second, x], [final.mean] * 2, color=colour, linewidth=1, zorder=2)
            axes.plot(second, final.mean, marker, color=colour, markerfacecolor=PAPER, markersize=size - 1, zorder=3)
        axes.errorbar(
            x,
            final.mean,
            yerr=final.deviation,
            fmt=marker,
            color=colour,
            markersize=size,
            capsize=4,
            elinewidth=1.3,
            zorder=4,
        )
        handles.append(Line2D([], [], color=colour, marker=marker, linestyle="", markersize=8, label=arm.label))
    handles += _lines(axes, comparison)
    _scale(axes, [value for pair in pairs for value in pair if value], text)
    axes.set_ylabel(f"{comparison.metric} (dev, larger is better)")
    axes.margins(y=0.08)
    if hollow:
        handles.append(Line2D([], [], color=INK, marker="o", linestyle="", label=solid))
        handles.append(Line2D([], [], color=INK, marker="o", markerfacecolor=PAPER, linestyle="", label=hollow))
    figure.legend(handles=handles, loc="outside upper left", ncols=2)
    return figure, axes


def draw_size(comparison: Comparison) -> Figure:
    """The final score against the size of the final student, by both conventions."""
    finals = [arm.first.final for arm in comparison.arms]
    pairs = [(final.packed_mib, final.paper_mib) for final in finals]
    figure, axes = _scatter(comparison, pairs, "packed", "on paper", size_text)
    axes.set_xlabel("size of the final student [MiB]")
    return figure


def draw_cost(comparison: Comparison) -> Figure:
    """The final score against what the chain cost to train; hollow: without General KD."""
    pairs = [(arm.chain.flops, arm.without_general.flops if arm.has_general else None) for arm in comparison.arms]
    hollow = "without General KD" if any(arm.has_general for arm in comparison.arms) else ""
    figure, axes = _scatter(comparison, pairs, "whole chain", hollow, si)
    axes.set_xlabel("training cost of the whole chain [FLOP],\nteacher's forward passes included")
    return figure


def draw_curves(comparison: Comparison) -> Figure:
    """Scores over the cumulative steps of the chain; below, which stage each arm is in."""
    arms = comparison.arms
    figure = Figure(figsize=(6.8, 4.1 + 0.3 * len(arms)), layout="constrained")
    top, strip = figure.subplots(2, sharex=True, height_ratios=[3.2, 0.32 * len(arms) + 0.1])
    handles = []
    for position, arm in enumerate(arms):
        # Arms share stages: what lies below stays visible as a border.
        _curve(top, arm, _colour(position), _marker(position), 1 + (len(arms) - 1 - position) / len(arms))
        handles.append(
            Line2D(
                [], [], color=_colour(position), marker=_marker(position), linestyle="-", label=arm.label, markersize=6
            )
        )
    handles += _lines(top, comparison)
    total = max(max(arm.chain.steps for arm in arms), 1)
    states = [_strip(strip, arm, len(arms) - 1 - row, total) for row, arm in enumerate(arms)]
    seen = [state for state in STATES if any(state in found for found in states)]
    held = any(HOLDOUT in run.final.dev for run in comparison.runs)
    top.set_ylabel(f"{comparison.metric} ({'hold-out; ends of stages: dev' if held else 'dev'})")
    top.margins(y=0.08)
    strip.set_ylim(-0.6, len(arms) - 0.4)
    strip.set_yticks(range(len(arms)), [arm.label for arm in reversed(arms)], fontsize=9)
    strip.tick_params(length=0)
    strip.grid(visible=False)
    strip.spines["left"].set_visible(False)
    strip.set_xlim(-0.01 * total, 1.01 * total)
    strip.set_xlabel("optimizer steps of the chain, stage after stage (the teacher's apart)")
    strip.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    figure.legend(handles=handles, loc="outside upper left", ncols=3)
    patches = [
        Patch(
            facecolor=colour_of(state),
            edgecolor=MUTED,
            linewidth=0.6,
            hatch="////" if state == "general" else None,
            label=STATES[state] + (": no task metric" if state == "general" else ""),
        )
        for state in seen
    ]
    figure.legend(handles=patches, loc="outside lower left", ncols=3)
    return figure


def _curve(axes: Axes, arm: Arm, colour: str, marker: str, weight: float) -> None:
    """One arm: each seed thin, their mean thick where they were validated at the same steps; a marker ends each stage."""
    ends: list[tuple[float, float]] = []
    offset = 0.0
    for position, (stage, mean) in enumerate(arm.stages()):
        if not in_chain(stage):
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
                axes.plot(steps, middle, color=colour, linewidth=1.6 * weight)
            ends.append((offset + stage.steps, mean.mean))
        offset += stage.steps
    axes.plot(*zip(*ends), color=colour, linestyle=":", linewidth=1, zorder=3)
    axes.plot(*zip(*ends), marker, color=colour, markersize=5.5 * weight, markeredgecolor=PAPER, mew=0.8, zorder=4)


def _strip(axes: Axes, arm: Arm, row: int, total: float) -> set[str]:
    """The arm's stages as spans in the colours of their states; returns the states."""
    found, offset = set(), 0.0
    for stage in filter(in_chain, arm.first.stages):
        state = state_of(stage)
        if stage.steps:
            found.add(state)
            hatch = "////" if state == "general" else None
            axes.broken_barh(
                [(offset, stage.steps)],
                (row - 0.34, 0.68),
                facecolor=colour_of(state),
                edgecolor=PAPER,
                linewidth=1,
                hatch=hatch,
            )
        elif state == "split":
            found.add(state)
            axes.plot(
                offset, row, marker="D", color=colour_of(state), markeredgecolor=INK, markeredgewidth=0.7, zorder=5
            )
        offset += stage.steps
    return found


COLUMNS = 8
"""Boxes in a line of the picture of the pipelines."""


def draw_pipelines(comparison: Comparison) -> Figure:
    """Each arm as a row of boxes, in several lines where there are many."""
    lines: list[tuple[str, list[Box]]] = []
    for arm in comparison.arms:
        found = boxes(arm)
        for start in range(0, len(found), COLUMNS):
            lines.append((arm.label if start == 0 else "", found[start : start + COLUMNS]))
    columns = max(len(found) for _, found in lines)
    width, height = 1.34, 1.62
    figure = Figure(figsize=(max(columns * width + 0.1, 6), len(lines) * height + 0.35))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    across, down = figure.get_size_inches()
    axes.set_xlim(0, across)
    axes.set_ylim(-0.35, down - 0.35)
    for number, (label, found) in enumerate(lines):
        top = (len(lines) - number) * height - 0.12
        axes.text(0.1, top, label, fontsize=10.5, fontweight="bold", va="center")
        for column, box in enumerate(found):
            left = 0.1 + column * width
            frame = FancyBboxPatch(
                (left + 0.03, top - 0.72),
                width - 0.26,
                0.5,
                boxstyle="round,pad=0.03",
                facecolor=box.colour,
                edgecolor="none",
            )
            axes.add_patch(frame)
            middle = left + 0.03 + (width - 0.26) / 2
            axes.text(middle, top - 0.47, _wrapped(box.title), fontsize=8, ha="center", va="center", color="#111111")
            axes.text(middle, top - 0.85, box.metric, fontsize=8, ha="center", va="center", fontweight="bold")
            axes.text(middle, top - 0.97, "\n".join(box.cost), fontsize=7.5, ha="center", va="top", color=MUTED)
            if column + 1 < len(found) and found[column + 1].follows:
                axes.text(left + width - 0.115, top - 0.47, "→", fontsize=11, ha="center", va="center", color=MUTED)
    handles = [
        Patch(facecolor=colour_of(state), label=name)
        for state, name in STATES.items()
        if any(box.state == state for _, found in lines for box in found)
    ]
    axes.legend(
        handles=handles, loc="lower left", ncols=len(handles), fontsize=8, bbox_to_anchor=(0, 0), columnspacing=1
    )
    return figure


def _wrapped(title: str) -> str:
    """Short lines, at most three; what stands in brackets, such as the bits, on a line of its own."""
    lines: list[str] = []
    for word in title.split():
        if len(word) > 14:
            lines += word.replace("-", "-\n").split("\n")
        elif lines and not word.startswith("(") and len(lines[-1]) + 1 + len(word) <= 14:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "\n".join(lines[:3])
