"""Tables of runs for a terminal."""

from collections.abc import Sequence
from textwrap import fill

from bitkd.compare.forms import metric_text
from bitkd.compare.rows import Row
from bitkd.data.tasks import HOLDOUT
from bitkd.report.fitted import FittedTable
from bitkd.report.numbers import DASH
from bitkd.report.tables import SEEDS_UNKNOWN, SIZE_RATIO, TextTable

OPTIONAL = ("MiB on paper", "parameters", "seconds", "steps", "seed", "MiB packed", "bits")
"""Columns that a narrow terminal may leave out, the first to go first: never names and scores."""

OPTIONAL_TEXT = (
    *(
        "hyper-parameters",
        "stages",
        "FLOP of products",
        "training time",
        "rows : seeds : both",
        "detectable",
        "p",
        "MiB packed",
    ),
    *("seeds", "budget", "bits", "student / teacher", "MiB counted", "MiB teacher"),
    *(SIZE_RATIO, "95 %, these models"),
)
"""The same of a comparison's tables."""


INTERVAL_WIDTH = 18
"""Characters of an interval; words in its place are wrapped to as many."""


def render_text(table: TextTable) -> FittedTable:
    """A table of text."""
    times_of_teacher = [name for name in table.header if name.startswith("teacher ") and "×" in name]
    rows = [[fill(cell, INTERVAL_WIDTH) if cell == SEEDS_UNKNOWN else cell for cell in row] for row in table.rows]
    return FittedTable(table.header, rows, [*OPTIONAL_TEXT, *times_of_teacher], ruled=True)


def render(rows: list[Row], labels: Sequence[str] = ()) -> FittedTable:
    """One row per stage, run after run.

    labels: each row's arm, shown with the seed on the first row of a run; empty if the runs' names already show the
    arms.
    """
    several = len({row.run for row in rows}) > 1 or bool(labels)
    sets = _dev_sets(rows)
    header = ["run"] * several + ["arm", "seed"] * bool(labels) + ["stage"]
    header += [f"{name} {metric_text(rows[0].metric)}" for name in sets]
    header += ["bits", "parameters", "MiB on paper", "MiB packed", "steps", "seconds"]
    cells, sections, before = [], [], None
    for position, row in enumerate(rows):
        arm = [labels[position], str(row.seed)] if labels else []
        if [row.run, *arm] != before:
            sections.append(position)
        shown = arm if [row.run, *arm] != before else [""] * len(arm)
        cells.append(
            [row.run] * several + shown + [row.stage, *(_score(row, name, sets) for name in sets), *_cost(row)]
        )
        before = [row.run, *arm]
    return FittedTable(header, cells, OPTIONAL, sections[1:], ruled=True)


def _dev_sets(rows: list[Row]) -> list[str]:
    """The dev sets that the task's metric was measured on; the first of them has the score."""
    scored = next((row for row in reversed(rows) if row.score is not None), None)
    names = [name for name, values in scored.dev.items() if name != HOLDOUT] if scored else []
    return [name for name in names if name == names[0] or (scored and rows[0].metric in scored.dev[name])] or ["dev"]


def _score(row: Row, dev: str, sets: list[str]) -> str:
    if row.score is None:  # without a head, its metrics are other ones
        return DASH
    value = row.score if dev == sets[0] else row.dev.get(dev, {}).get(row.metric)
    return DASH if value is None else f"{value:.4f}"


def _cost(row: Row) -> list[str]:
    sizes = [f"{row.parameters / 1e6:.3f} M", f"{row.paper_mib:.3f}", f"{row.packed_mib:.3f}"]
    return [row.precision, *sizes, str(row.steps), f"{row.seconds:.0f}"]
