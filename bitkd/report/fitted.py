"""A table that fits its terminal: no cell is ever cut."""

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from bitkd.report.console import UNLIMITED

_NUMBER = re.compile(r"[+−-]?\d[\d.,/]*( [A-Za-z]+)?( ± [\d.]+)?")
_EMPTY = ("", "–", "?")


class FittedTable:
    """A table of text for a terminal of any width.

    If it is too wide, columns are left out, and a line below the table names them. If that is not enough, each row takes
    several lines, one for each column.

    header: names of the columns.  rows: cells, as many as columns.
    optional: names of the columns that may be left out, the first to go first.
    sections: numbers of the rows before which a line is left free.
    ruled: draw a line under the header, and write the last word of a column's name on a second line.
    """

    def __init__(
        self,
        header: Sequence[str],
        rows: Sequence[Sequence[str]],
        optional: Sequence[str] = (),
        sections: Collection[int] = (),
        ruled: bool = False,
    ) -> None:
        self.header = list(header)
        self.rows = [list(row) for row in rows]
        self.optional = [name for name in optional if name in self.header]
        self.sections = sections
        self.ruled = ruled

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for count in range(len(self.optional) + 1):
            absent = self.optional[:count]
            places = [place for place, name in enumerate(self.header) if name not in absent]
            for broken in (self.ruled, True):
                table = self._table(places, broken)
                if Measurement.get(console, options.update(width=UNLIMITED), table).maximum > options.max_width:
                    continue
                yield table
                if absent:
                    names = ", ".join(name for name in self.header if name in absent)
                    yield Text(f"not shown in {options.max_width} columns: {names} (--json has all)")
                return
        yield from self._stacked()

    def _table(self, places: Sequence[int], broken: bool) -> Table:
        table = Table(pad_edge=False, box=box.SIMPLE_HEAD if self.ruled else None)
        for place in places:
            name = _in_lines(self.header[place]) if broken else self.header[place]
            right = place > 0 and _are_numbers(row[place] for row in self.rows)
            justify: Any = "right" if right else "left"
            table.add_column(Text(name, justify=justify), justify=justify, no_wrap=True)
        for number, row in enumerate(self.rows):
            if number in self.sections:
                table.add_section()
            table.add_row(*(Text(row[place]) for place in places))
        return table

    def _stacked(self) -> Iterable[Text]:
        for row in self.rows:
            cells = [(name, cell.replace("\n", " ")) for name, cell in zip(self.header, row) if cell]
            for number, (name, cell) in enumerate(cells):
                yield Text(f"{'  ' if number else ''}{name} {cell}".strip("\n"), overflow="fold")


def _in_lines(name: str) -> str:
    """A column's name in several lines: before its last word, and before each dot of a setting's name."""
    return "\n".join(name.rsplit(" ", 1)).replace(".", "\n.")


def _are_numbers(cells: Iterable[str]) -> bool:
    found = [cell for cell in cells if cell not in _EMPTY]
    return bool(found) and all(_NUMBER.fullmatch(cell) for cell in found)
