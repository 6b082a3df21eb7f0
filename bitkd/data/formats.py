"""Records of a table file, read by its suffix: .tsv, .csv, .jsonl or .parquet. Every error names its file and line."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bitkd.errors import InputError


class Malformed(ValueError):
    """One row that cannot be read; the message says where it is and why."""


Record = tuple[str, list[Any] | Malformed]
"""The place of a row (file and line), and its fields in the order of the wanted columns, or what is wrong with it."""


def read_records(
    file: Path, columns: list[str], header: list[str] | None = None, suffix: str | None = None
) -> Iterator[Record]:
    """The rows of a file, reduced to `columns`. A byte-order mark and CRLF are accepted.

    header: column names of a .tsv or .csv file that has no header line.  suffix: read it as if its name ended so.
    Raises InputError if the file as a whole cannot be read: an unknown suffix, a missing column, damaged Parquet.
    """
    readers: dict[str, Callable[[Path, list[str], list[str] | None], Iterator[Record]]] = {
        ".tsv": _read_tsv,
        ".txt": _read_tsv,
        ".csv": _read_csv,
        ".jsonl": _read_jsonl,
        ".json": _read_jsonl,
        ".parquet": _read_parquet,
    }
    suffix = file.suffix.lower() if suffix is None else suffix
    if suffix not in readers:
        raise InputError(
            f"{file}: rows in {file.suffix or 'files without a suffix'} are unknown; use {', '.join(readers)}"
        )
    return readers[suffix](file, columns, header)


def read_lines(file: Path, keep_end: bool = False) -> Iterator[tuple[int, str | Malformed]]:
    """Numbered lines of a UTF-8 file. Only \\n and \\r\\n end a line: a text may contain Unicode's other separators."""
    with open(file, "rb") as stream:
        for number, raw in enumerate(stream, start=1):
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                byte = error.object[error.start]  # counted after a byte-order mark
                yield number, Malformed(f"{file}:{number}: byte {error.start} is not UTF-8 (0x{byte:02x})")
                continue
            yield number, text if keep_end else text.rstrip("\n").removesuffix("\r")


def _read_tsv(file: Path, columns: list[str], header: list[str] | None) -> Iterator[Record]:
    rows = ((number, line if isinstance(line, Malformed) else line.split("\t")) for number, line in read_lines(file))
    return _split_fields(file, columns, header, rows, "tab")


def _read_csv(file: Path, columns: list[str], header: list[str] | None) -> Iterator[Record]:
    bad: list[tuple[int, Malformed]] = []

    def texts() -> Iterator[str]:
        for number, line in read_lines(file, keep_end=True):
            if isinstance(line, Malformed):
                bad.append((number, line))
                line = "\n"
            yield line

    def rows() -> Iterator[tuple[int, list[str] | Malformed]]:
        reader = csv.reader(texts(), strict=True)
        while True:
            first = reader.line_num + 1
            fields: list[str] | Malformed
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if bad:
                    raise InputError(f"{bad[0][1]}; save the file as UTF-8") from error
                if reader.line_num > first:
                    raise InputError(
                        f"{file}:{first}: a quote is opened here and not closed as it should be until line "
                        f"{reader.line_num} ({error}); correct the file: the number of rows between is unknown"
                    ) from error
                fields = Malformed(f"{file}:{first}: {error}")
            if bad:  # this row has a line that is not UTF-8
                yield from bad
                bad.clear()
            elif fields != []:
                yield first, fields

    return _split_fields(file, columns, header, rows(), "comma")


def _split_fields(
    file: Path,
    columns: list[str],
    header: list[str] | None,
    rows: Iterator[tuple[int, list[str] | Malformed]],
    separator: str,
) -> Iterator[Record]:
    """Pick `columns` out of each row's fields.  separator: its name, for messages."""
    if header is None:
        _, first = next(rows, (1, None))
        if first is None:
            raise InputError(f"{file} is empty; it needs a line of column names, and rows")
        if isinstance(first, Malformed):
            raise InputError(str(first))
        header = first
    missing = [column for column in columns if column not in header]
    if missing:
        commas = len(header) == 1 and "," in header[0]
        hint = "; its fields seem to be separated by commas: name it .csv" if commas else ""
        raise InputError(
            f"{file}:1: column {missing[0]} is missing; the columns are {header}, the task needs {columns}{hint}"
        )
    places = [header.index(column) for column in columns]
    for number, fields in rows:
        where = f"{file}:{number}"
        if isinstance(fields, Malformed):
            yield where, fields
        elif len(fields) != len(header):
            yield (
                where,
                Malformed(f"{where}: {len(fields)} {separator}-separated fields, the header has {len(header)}"),
            )
        else:
            yield where, [fields[place] for place in places]


def _read_jsonl(file: Path, columns: list[str], header: list[str] | None) -> Iterator[Record]:
    for number, line in read_lines(file):
        where = f"{file}:{number}"
        if isinstance(line, Malformed):
            yield where, line
            continue
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            yield where, Malformed(f"{where}: no JSON ({error})")
            continue
        missing = [column for column in columns if not isinstance(row, dict) or column not in row]
        if missing:
            found = list(row) if isinstance(row, dict) else type(row).__name__
            yield where, Malformed(f"{where}: {missing[0]} is missing; the row has {found}")
        else:
            yield where, [row[column] for column in columns]


def _read_parquet(file: Path, columns: list[str], header: list[str] | None) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{file} is no Parquet file ({str(error).splitlines()[0]})") from error
    missing = [column for column in columns if column not in table.schema_arrow.names]
    if missing:
        raise InputError(f"{file}: column {missing[0]} is missing; the columns are {table.schema_arrow.names}")
    number = 0
    try:
        for batch in table.iter_batches(columns=columns):
            for row in batch.to_pylist():
                yield f"{file}, row {number}", [row[column] for column in columns]
                number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{file} is damaged after row {number} ({str(error).splitlines()[0]})") from error
