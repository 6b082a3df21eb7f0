"""How pictures look, and how they become PNG files and SVG elements."""

import io
import math
import re
import textwrap
from collections.abc import Sequence
from html import escape
from typing import Any

import matplotlib
from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#1b1b1c", "#65656b", "#dcdce0", "#fffffe"
ARMS = ("#0072b2", "#d55e00", "#009e73", "#b0418a", "#33333a", "#56b4e9", "#a97900")
"""After Okabe and Ito's palette for all kinds of colour vision, some darker so that lines are visible on white."""

MARKERS = "os^DvPX*"
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--paper"} | {
    colour: f"--arm{number}" for number, colour in enumerate(ARMS)
}
"""The page's CSS variables, by the colours that they replace in an SVG."""

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
    "text.parse_math": False,
}


def to_png(figure: Figure) -> bytes:
    """The same bytes for the same figure: no date, no version."""
    stream = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(stream, format="png", dpi=160, metadata={"Software": None})
    return stream.getvalue()


def to_svg(figure: Figure, name: str, description: str) -> str:
    """An <svg> element for a page.  name: prefix of its ids, so that ids on one page differ."""
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
        text = text.replace(size[0], f'role="img" aria-label="{escape(description)}"', 1)
    return text


def wrapped(label: str, width: int, most: int = 4) -> str:
    """An arm's name in at most `most` lines of `width` letters: pictures have little room, and tables show it whole."""
    lines = textwrap.wrap(label.replace("stages.", ""), width, max_lines=most, placeholder=" …", break_on_hyphens=False)
    return "\n".join(lines)


def legend_lines(labels: Sequence[str], columns: int) -> int:
    """Lines of text in the longest column of a legend."""
    lines = [label.count("\n") + 1 for label in labels]
    rows = math.ceil(len(lines) / columns)
    return max(sum(lines[start : start + rows]) for start in range(0, len(lines), rows))


def arm_colour(position: int) -> str:
    """The colour of an arm by its place in a comparison."""
    return ARMS[position % len(ARMS)]


def arm_marker(position: int) -> str:
    """The marker of an arm by its place in a comparison."""
    return MARKERS[position % len(MARKERS)]
