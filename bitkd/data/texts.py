"""Reads a person's own rows, from a file or from standard input: texts for prediction, while they come; or with labels."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from bitkd.data.files import Rows, as_text
from bitkd.data.formats import Record, read_records
from bitkd.data.lines import Malformed, read_lines
from bitkd.data.tasks import TaskSpec
from bitkd.errors import InputError

STDIN = "-"
FORMATS = ("tsv", "csv", "jsonl", "parquet")

Line = tuple[int, str | Malformed]


@dataclass(frozen=True)
class TextFile:
    """Rows of texts without labels. Raises InputError if the file is not there.

    A table (.tsv, .csv, .jsonl or .parquet) has the texts in columns of the task's names; other columns are not read.
    Standard input, a pipe and a .txt file may be without a header: then each line is a row, and a tab separates the two
    texts of a pair. A blank line at the end is no row.
    """

    source: str
    """Path of the file; "-" is standard input."""

    columns: Sequence[list[str]]
    """Names that the columns of the texts may have, the task's own first. If some are fewer, rows may have fewer texts."""

    format: str | None = None
    """One of FORMATS; None takes the file's suffix."""

    def __post_init__(self) -> None:
        if self.source != STDIN and not self.path.exists():
            raise InputError(f"{self.source}: there is no such file; name a file of rows, or - for standard input")
        if self.path.is_dir():
            raise InputError(f"{self.source} is a folder; name a file of rows, or - for standard input")
        if self.format == "parquet" and not self.can_be_read_again:
            raise InputError("Parquet cannot be read from a pipe; name the file")

    @property
    def path(self) -> Path:
        return Path("/dev/stdin") if self.source == STDIN else Path(self.source).expanduser()

    @property
    def can_be_read_again(self) -> bool:
        """Whether it is a file on the disk, so that all its rows can be checked before the work begins."""
        return self.source != STDIN and self.path.is_file()

    def rows(self) -> Iterator[Record]:
        """The place of each row and its one or two texts, or what is wrong with it.

        Raises InputError if the file as a whole cannot be read: a column is missing, its format is unknown or damaged.
        """
        for place, fields in self._records():
            yield place, fields if isinstance(fields, Malformed) else _check(place, fields, self.columns[0])

    def _records(self) -> Iterator[Record]:
        if self.can_be_read_again and not self.path.stat().st_size:
            return
        if self.format is None and (self.path.suffix == ".txt" or not self.can_be_read_again):
            yield from self._read_lines()
        else:
            first, *others = self.columns
            suffix = f".{self.format}" if self.format else None
            yield from read_records(self.path, first, suffix=suffix, others=others)

    def _read_lines(self) -> Iterator[Record]:
        lines = read_lines(self.path)
        first = next(lines, None)
        if first is None:
            return
        names = [] if isinstance(first[1], Malformed) else first[1].split("\t")
        found = next((columns for columns in self.columns if set(columns) <= set(names)), None)
        if found is not None:
            width, places = len(names), [names.index(column) for column in found]
        else:
            self._refuse_other_formats(first)
            lines = chain([first], lines)
            widths = [len(columns) for columns in self.columns]
            width = len(names) if len(names) in widths else widths[0]
            places = list(range(width))
        for number, line in _without_blank_end(lines):
            where = f"{self._name}:{number}"
            if isinstance(line, Malformed):
                yield where, line
            elif len(fields := line.split("\t")) == width:
                yield where, [fields[place] for place in places]
            else:
                yield where, Malformed(f"{where}: {len(fields)} tab-separated fields, {self._wanted(width, found)}")

    @property
    def _name(self) -> str:
        return "standard input" if self.source == STDIN else self.source

    def _wanted(self, width: int, found: list[str] | None) -> str:
        if found is not None:
            return f"the header has {width}"
        texts = " and ".join(self.columns[0])
        return f"the task reads {width}: {texts} (the first line is no header, which would have these names)"

    def _refuse_other_formats(self, first: Line) -> None:
        """Raise InputError if the first line is one of JSON lines, or the header of a .csv file: it is no text."""
        line = first[1]
        if isinstance(line, Malformed):
            return
        if line.startswith("{"):
            try:
                names = set(json.loads(line))
            except ValueError:
                return
            found = "jsonl"
        else:
            names, found = {name.strip().strip('"') for name in line.split(",")}, "csv"
        if any(set(columns) <= names for columns in self.columns):
            raise InputError(f"{self._name}:1: this looks like a row of a .{found} file; add --format {found}")


def read_labelled(file: TextFile, task: TaskSpec) -> Rows:
    """Rows of texts and labels, of a file or of standard input: a table in the form of the task's files, read to its end.

    Its columns may also have the hub's names. Standard input without a format is tab-separated.
    Raises InputError if there are no rows, or if the file or a row cannot be read (see `bitkd.data.files.read_rows`).
    """
    labels = dict.fromkeys([task.files.label, task.hub.label])
    others = [[*texts, label] for texts in file.columns for label in labels]
    suffix = f".{file.format}" if file.format else None if file.can_be_read_again else ".tsv"
    found: Rows = task.of_kind.read(task, file.path, suffix=suffix, others=others)
    return found


def _without_blank_end(lines: Iterator[Line]) -> Iterator[Line]:
    blank: list[Line] = []
    for number, line in lines:
        if line == "":
            blank.append((number, line))
            continue
        yield from blank
        blank.clear()
        yield number, line


def _check(place: str, texts: list[Any], columns: list[str]) -> list[str] | Malformed:
    try:
        return [as_text(text, column, place) for text, column in zip(texts, columns)]
    except Malformed as fault:
        return fault
