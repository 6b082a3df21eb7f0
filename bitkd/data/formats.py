"""Records of a table file, read by its suffix: .tsv, .csv, .jsonl, .json or .parquet. Every error names its file and line."""

import csv
import sys
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import Any

from bitkd.data.json_rows import JsonObject, read_json_rows
from bitkd.data.lines import Malformed, read_lines
from bitkd.errors import InputError, shorten

Record = tuple[str, list[Any] | Malformed]
"""The place of a row (file and line), and its fields in the order of the wanted columns, or what is wrong with it."""

Choices = Sequence[list[str]]
"""The names that the wanted columns may have, the first ones before the others."""

Fields = list[str] | Malformed
"""All fields of a line, or what is wrong with it."""


def read_records(
    file: Path,
    columns: list[str],
    header: list[str] | None = None,
    suffix: str | None = None,
    others: Sequence[list[str]] = (),
) -> Iterator[Record]:
    """The rows of a file, reduced to `columns`. A byte-order mark, CRLF and blank last lines are accepted; text formats
    may be compressed with gzip.

    header: column names of a .tsv or .csv file that has no header line.  suffix: read it as if its name ended so.
    others: names that the columns may have instead, if the file lacks `columns`.
    Raises InputError if the file as a whole cannot be read: an unknown suffix, a missing column or one that stands
    twice, another encoding than UTF-8, damaged Parquet or gzip.
    """
    name = suffix or file.name
    if not is_table(name):
        raise InputError(
            f"{file}: rows in {''.join(file.suffixes[-2:]) or 'files without a suffix'} are unknown; use "
            f"{', '.join(READERS)}, the text formats also with .gz"
        )
    return READERS[_suffix(name)](file, [columns, *others], header)


def is_table(name: str) -> bool:
    """Whether `read_records` reads files of this name."""
    return _suffix(name) in READERS and not name.lower().endswith(".parquet.gz")


def _suffix(name: str) -> str:
    return f".{name.lower().removesuffix('.gz').rpartition('.')[2]}"


def _read_tsv(file: Path, choices: Choices, header: list[str] | None) -> Iterator[Record]:
    rows = ((number, line if isinstance(line, Malformed) else line.split("\t")) for number, line in read_lines(file))
    return _split_fields(file, choices, header, rows, "tab")


def _read_csv(file: Path, choices: Choices, header: list[str] | None) -> Iterator[Record]:
    csv.field_size_limit(sys.maxsize)  # the module has only a global limit, 131,072 characters at first
    bad: list[tuple[int, Malformed]] = []

    def texts() -> Iterator[str]:
        for number, line in read_lines(file, keep_end=True):
            if isinstance(line, Malformed):
                bad.append((number, line))
                line = line.text  # with its quotes: they say where the row ends
            yield line

    def rows() -> Iterator[tuple[int, Fields]]:
        reader = csv.reader(texts(), strict=True)
        while True:
            first = reader.line_num + 1
            fields: Fields
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                problem = str(error)
                if problem.startswith("new-line character"):
                    problem = (
                        "a carriage return stands outside quotes: quote the field, and end lines with \\n or \\r\\n"
                    )
                if reader.line_num > first and bad:
                    raise InputError(f"{bad[0][1]}; save the file as UTF-8") from error
                if reader.line_num > first:
                    raise InputError(
                        f"{file}:{first}: a quote is opened here and not closed as it should be until line "
                        f"{reader.line_num} ({problem}); correct the file: the number of rows between is unknown"
                    ) from error
                fields = Malformed(f"{file}:{first}: {problem}")
            if bad:  # this row has a line that is not UTF-8
                yield bad[0]
                bad.clear()
            elif fields != []:
                yield first, fields

    return _split_fields(file, choices, header, rows(), "comma")


def _split_fields(
    file: Path, choices: Choices, header: list[str] | None, rows: Iterator[tuple[int, Fields]], separator: str
) -> Iterator[Record]:
    """Pick the wanted columns out of each row's fields.  separator: its name, for messages."""
    if header is None:
        _, first = next(rows, (1, None))
        if first is None:
            raise InputError(f"{file} is empty; it needs a line of column names, and rows")
        if isinstance(first, Malformed):
            raise InputError(str(first))
        header = first
    columns = _choose(choices, header) or choices[0]
    _check_columns(f"{file}:1", columns, header, _hint(header, separator))
    places = [header.index(column) for column in columns]
    blank: list[tuple[int, Fields]] = []
    for number, fields in rows:
        if _is_blank(fields, header, separator):
            blank.append((number, fields))  # no row if it is at the end of the file
            continue
        yield from (_pick(f"{file}:{n}", f, header, places, separator) for n, f in (*blank, (number, fields)))
        blank.clear()


def _is_blank(fields: Fields, header: list[str], separator: str) -> bool:
    """Whether a row is a line without fields. In a .csv file, an empty field alone is quoted, and therefore a row. If
    there is one column, spaces are a text."""
    if isinstance(fields, Malformed) or len(fields) > 1:
        return False
    return not fields[0].strip() if len(header) > 1 else separator == "tab" and fields[0] == ""


def _pick(where: str, fields: Fields, header: list[str], places: list[int], separator: str) -> Record:
    if isinstance(fields, Malformed):
        return where, fields
    if len(fields) == len(header):
        return where, [fields[place] for place in places]
    hint = ""
    if any("\r" in field for field in fields):
        hint = "; there are carriage returns in it: lines end in \\n or \\r\\n"
    elif separator == "tab" and any(field.startswith('"') for field in fields):
        hint = "; in .tsv quotes are text: save texts that have tabs or line ends as .csv or .jsonl"
    return where, Malformed(f"{where}: {len(fields)} {separator}-separated fields, the header has {len(header)}{hint}")


def _choose(choices: Choices, names: Container[object]) -> list[str] | None:
    """The first of `choices` that are all among the names."""
    return next((columns for columns in choices if all(column in names for column in columns)), None)


def _check_columns(where: str, columns: list[str], header: list[str], hint: str = "") -> None:
    """Raise InputError unless each of `columns` stands once in `header`."""
    for column in columns:
        if column not in header:
            raise InputError(
                f"{where}: column {column} is missing; the columns are {shorten(header)}, the task needs {columns}{hint}"
            )
        if header.count(column) > 1:
            raise InputError(
                f"{where}: {header.count(column)} columns have the name {column}; rename all but the one that is meant"
            )


def _hint(header: list[str], separator: str) -> str:
    """What may be wrong with a header that lacks a column."""
    if separator == "tab" and any(name.startswith('"') for name in header):
        return "; .tsv is read without quotes: save it as .csv"
    for name, found, cure in (("comma", ",", "name it .csv"), ("tab", "\t", "name it .tsv"), ("semicolon", ";", "")):
        if len(header) == 1 and name != separator and found in header[0]:
            return f"; its fields seem to be separated by {name}s: {cure or f'save it with {separator}s'}"
    return ""


def _read_json(file: Path, choices: Choices, header: list[str] | None) -> Iterator[Record]:
    """One object per line, or one array of objects."""
    chosen: list[str] | None = None  # by the first row that has them
    for where, row in read_json_rows(file):
        if isinstance(row, Malformed):
            yield where, row
            continue
        if chosen is None and isinstance(row, JsonObject):
            chosen = _choose(choices, row)
        columns = chosen or choices[0]
        missing = [column for column in columns if not isinstance(row, JsonObject) or column not in row]
        if missing:
            found = shorten(list(row)) if isinstance(row, JsonObject) else type(row).__name__
            yield where, Malformed(f"{where}: {missing[0]} is missing; the row has {found}")
        elif repeated := [column for column in columns if column in row.repeated]:
            yield where, Malformed(f"{where}: {repeated[0]} stands twice in the row")
        else:
            yield where, [row[column] for column in columns]


def _read_parquet(file: Path, choices: Choices, header: list[str] | None) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    unreadable = (pyarrow.ArrowException, OSError, ValueError)
    try:
        table = pyarrow.parquet.ParquetFile(file)
        names = table.schema_arrow.names
    except unreadable as error:
        raise InputError(f"{file} is no Parquet file ({_first_line(error)})") from error
    columns = _choose(choices, names) or choices[0]
    _check_columns(str(file), columns, names)
    number = 0
    try:
        for batch in table.iter_batches(columns=list(dict.fromkeys(columns))):
            values = [_values(batch.column(column)) for column in columns]
            for fields in zip(*values):
                where = f"{file}, row {number}"
                wrong = [(column, field) for column, field in zip(columns, fields) if isinstance(field, Malformed)]
                yield where, Malformed(f"{where}: {wrong[0][0]} cannot be read ({wrong[0][1]})") if wrong else [*fields]
                number += 1
    except unreadable as error:
        raise InputError(f"{file} is damaged after row {number} ({_first_line(error)})") from error


def _values(column: Any) -> list[Any]:
    """The values of a column of a pyarrow batch; Malformed where one has no Python value, such as a text that is not
    UTF-8."""
    try:
        return column.to_pylist()
    except (ValueError, OverflowError):
        return [_value(scalar) for scalar in column]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return Malformed(f"byte {error.start} is not UTF-8")
    except (ValueError, OverflowError) as error:
        return Malformed(_first_line(error))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


READERS: dict[str, Callable[[Path, Choices, list[str] | None], Iterator[Record]]] = {
    ".tsv": _read_tsv,
    ".txt": _read_tsv,
    ".csv": _read_csv,
    ".jsonl": _read_json,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
