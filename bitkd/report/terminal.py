"""Tables for a terminal."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from bitkd.compare.rows import Row
from bitkd.report.tables import DASH, TextTable


def _header(rows: list[Row]) -> tuple[str, ...]:
    columns = ("bits", "parameters", "MiB on paper", "MiB packed", "steps", "seconds")
    return ("run", "stage", f"dev {rows[0].metric}", *columns)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.run,
        row.stage,
        DASH if row.score is None else f"{row.score:.4f}",
        row.precision,
        f"{row.parameters / 1e6:.3f} M",
        f"{row.paper_mib:.3f}",
        f"{row.packed_mib:.3f}",
        str(row.steps),
        f"{row.seconds:.0f}",
    )


def render_text(table: TextTable) -> Table:
    """A table of text."""
    shown = _table(table.header)
    for row in table.rows:
        shown.add_row(*row)
    return shown


def render(rows: list[Row], labels: Sequence[str] = ()) -> Table:
    """One row per stage, run after run.

    labels: each row's arm, shown with the seed on the first row of a run; empty if the runs' names already show the
    arms.
    """
    header = (*_header(rows)[:1], *(("arm", "seed") if labels else ()), *_header(rows)[1:])
    table = _table(header)
    before = None
    for position, row in enumerate(rows):
        arm = (labels[position], str(row.seed)) if labels else ()
        is_first = (row.run, *arm) != before
        if is_first and position:
            table.add_section()
        run, *cells = _cells(row)
        table.add_row(run, *(arm if is_first else [""] * len(arm)), *cells)
        before = (row.run, *arm)
    return table


def _table(header: Sequence[str]) -> Table:
    """An empty table; the last word of a column's name is on a second line."""
    return Table(*("\n".join(name.rsplit(" ", 1)) for name in header), box=box.SIMPLE_HEAD, pad_edge=False)
