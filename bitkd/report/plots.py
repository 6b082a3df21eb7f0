"""The report's pictures by matplotlib: PNG for files, SVG whose colours a page sets with CSS variables."""

from collections.abc import Callable, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bitkd.compare.comparison import Comparison
from bitkd.report.boxes import Box, boxes
from bitkd.report.curves import draw_curves, reference_lines
from bitkd.report.looks import in_order
from bitkd.report.numbers import si, size_text
from bitkd.report.style import INK, MUTED, PAPER, STYLE, arm_colour, arm_marker, legend_lines, wrapped

LOG_FROM = 15
"""Largest value / smallest value from which an axis is logarithmic."""

FAR_BELOW = 2
"""Times the span of all scores from which the majority is too far below them to be shown."""


def draw(comparison: Comparison) -> dict[str, Figure]:
    """The pictures by name: score against size, against cost, against speed if it was measured, learning curves, pipelines."""
    pictures: dict[str, Callable[[Comparison], Figure]] = {
        "size": draw_size,
        "cost": draw_cost,
        **({"speed": draw_speed} if comparison.has_speed else {}),
        "curves": draw_curves,
        "pipelines": draw_pipelines,
    }
    with matplotlib.rc_context(STYLE):
        return {name: picture(comparison) for name, picture in pictures.items()}


def _spread(values: list[float]) -> bool:
    return bool(values) and min(values) > 0 and max(values) / min(values) >= LOG_FROM


def _scale(axes: Axes, values: list[float], text: Callable[[float], str]) -> None:
    """A linear axis, from 0 unless the values are close to each other, or a logarithmic one if their range needs it."""
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


def _scatter(
    comparison: Comparison,
    pairs: Sequence[tuple[float | None, float | None]],
    solid: str,
    hollow: str,
    text: Callable[[float], str],
) -> tuple[Figure, Axes]:
    """Final scores over `pairs` of x values for each arm: a solid marker, and a hollow one if there is a second.
    An arm without the first is left out."""
    figure = Figure(layout="constrained")
    axes = figure.add_subplot()
    handles = []
    for position, (arm, (x, second)) in enumerate(zip(comparison.arms, pairs)):
        colour, marker, final = arm_colour(position), arm_marker(position), arm.final
        # If points coincide, those below stay visible.
        size = 7.5 + 3 * (1 - (position + 1) / len(comparison.arms))
        if final.mean is None or x is None:
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
            capsize=size / 2 + 2,  # wider than the marker, which may be taller than the bar
            elinewidth=1.3,
            zorder=4,
        )
        name = wrapped(arm.label, 25)
        handles.append(Line2D([], [], color=colour, marker=marker, linestyle="", markersize=8, label=name))
    handles += _references(axes, comparison)
    _scale(axes, [value for pair in pairs for value in pair if value], text)
    axes.set_ylabel(f"{comparison.metric_text} (dev, larger is better)")
    if hollow:
        handles.append(Line2D([], [], color=INK, marker="o", linestyle="", label=solid))
        handles.append(Line2D([], [], color=INK, marker="o", markerfacecolor=PAPER, linestyle="", label=hollow))
    figure.legend(handles=handles, loc="outside upper left", ncols=2)
    lines = legend_lines([str(handle.get_label()) for handle in handles], 2)
    figure.set_size_inches(4.6, 4.1 + 0.16 * max(0, lines - 5))
    return figure, axes


def _references(axes: Axes, comparison: Comparison) -> list[Line2D]:
    """The teacher and the baseline; a baseline so far below that all scores would coincide is left to the legend."""
    axes.margins(y=0.08)
    finals = [arm.final for arm in comparison.arms]
    scores = [one.mean + sign * (one.deviation or 0) for one in (*finals, comparison.teacher) if one.mean is not None
              for sign in (-1, 1)]  # fmt: skip
    handles = reference_lines(axes, comparison)
    span = max(scores, default=0) - min(scores, default=0)
    if span > 0 and min(scores) - comparison.majority > FAR_BELOW * span:
        axes.set_ylim(min(scores) - 0.08 * span, max(scores) + 0.08 * span)
        handles[-1].set_label(f"{handles[-1].get_label()} (below)")
    return handles


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
    axes.set_xlabel("training cost of the whole chain [FLOP of products],\nteacher's forward passes included")
    return figure


def draw_speed(comparison: Comparison) -> Figure:
    """The final score against the exported student's speed in multiples of its teacher's; hollow: with the smallest batch."""
    small, large = comparison.speed_shapes[0], comparison.speed_shapes[-1]
    names = [f"{batch}×{length}" for batch, length in (large, small)]
    figure, axes = _scatter(
        comparison, comparison.times_faster, names[0], names[1] if small != large else "", lambda value: f"{value:.3g}"
    )
    axes.set_xlabel("times faster than the teacher, as exported\n(texts × tokens of a batch)")
    return figure


COLUMNS = 8
"""Boxes in a line of the picture of the pipelines."""


def draw_pipelines(comparison: Comparison) -> Figure:
    """Each arm as a row of boxes, in several lines if there are many."""
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
        axes.text(0.1, top, wrapped(label, round(12 * across), 1), fontsize=10.5, fontweight="bold", va="center")
        for column, box in enumerate(found):
            left = 0.1 + column * width
            frame = FancyBboxPatch(
                (left + 0.03, top - 0.72),
                width - 0.26,
                0.5,
                boxstyle="round,pad=0.03",
                facecolor=box.look.colour,
                edgecolor="none",
            )
            axes.add_patch(frame)
            middle = left + 0.03 + (width - 0.26) / 2
            axes.text(
                middle, top - 0.47, _title_lines(box.title), fontsize=8, ha="center", va="center", color="#111111"
            )
            axes.text(middle, top - 0.85, box.metric, fontsize=8, ha="center", va="center", fontweight="bold")
            axes.text(middle, top - 0.97, "\n".join(box.cost), fontsize=7.5, ha="center", va="top", color=MUTED)
            if column + 1 < len(found) and found[column + 1].follows:
                axes.text(left + width - 0.115, top - 0.47, "→", fontsize=11, ha="center", va="center", color=MUTED)
    handles = [
        Patch(facecolor=look.colour, label=look.label)
        for look in in_order(box.look for _, found in lines for box in found)
    ]
    axes.legend(
        handles=handles, loc="lower left", ncols=len(handles), fontsize=8, bbox_to_anchor=(0, 0), columnspacing=1
    )
    return figure


def _title_lines(title: str) -> str:
    """Short lines, at most three; what is in brackets, such as the bits, on its own line."""
    lines: list[str] = []
    for word in title.split():
        if len(word) > 14:
            lines += word.replace("-", "-\n").split("\n")
        elif lines and not word.startswith("(") and len(lines[-1]) + 1 + len(word) <= 14:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "\n".join(lines[:3])
