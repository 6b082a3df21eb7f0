"""Finished runs: one row per stage, as plain data and as a table for a terminal."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from bitkd.compare.rows import Row


def _header(rows: list[Row]) -> tuple[str, ...]:
    columns = ("bits", "parameters", "MiB on paper", "MiB packed", "steps", "seconds")
    return ("run", "stage", f"dev {rows[0].metric}", *columns)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.run,
        row.stage,
        "–" if row.score is None else f"{row.score:.4f}",
        row.precision,
        f"{row.parameters / 1e6:.3f} M",
        f"{row.paper_mib:.3f}",
        f"{row.packed_mib:.3f}",
        str(row.steps),
        f"{row.seconds:.0f}",
    )


def render(rows: list[Row], labels: Sequence[str] = ()) -> Table:
    """The rows as a table for a terminal, run after run.

    labels: each row's arm, which then stands with the seed on the first row of a run; none where runs' names say it all.
    """
    header = (*_header(rows)[:1], *(("arm", "seed") if labels else ()), *_header(rows)[1:])
    table = Table(*("\n".join(name.rsplit(" ", 1)) for name in header), box=box.SIMPLE_HEAD, pad_edge=False)
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
