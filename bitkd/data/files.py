"""Rows of a task from its files; nothing is dropped in silence, every fault has a file and a line."""

import csv
import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from bitkd.data.tasks import TaskSpec
from bitkd.errors import InputError

Rows = dict[str, list[Any]]
"""Columns text_a, text_b (of pairs) and label (int, or float for a regression; absent where a split has none)."""

SHOWN_FAULTS = 3

log = logging.getLogger(__name__)


class Malformed(ValueError):
    """One row that cannot be read; the message says where and why."""


Record = tuple[str, list[Any] | Malformed]
"""Where a row stands, and its fields in the order of the wanted columns, or what is wrong with it."""

ReadLabel = Callable[[Any, str], int | float]
"""A label out of a field and the row's place; raises Malformed."""


def find_file(task: TaskSpec, name: str, data_dir: Path | str) -> Path:
    """The file `name` of a task in `data_dir/<folder>` or in `data_dir`."""
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        raise InputError(f"data.dir={data_dir}: there is no such folder; name the folder that holds the task's files")
    candidates = list(dict.fromkeys([root / task.files.folder / name, root / name]))
    for file in candidates:
        if file.is_file():
            return file
    looked = " and ".join(str(file) for file in candidates)
    others = sorted({other.name for file in candidates for other in file.parent.glob(f"{file.stem}.*")})
    hint = f"; there is {', '.join(others)}: name the files under task.files" if others else ""
    wanted = Path(task.files.folder) / name
    raise InputError(
        f"task {task.name} has no {name}: looked at {looked}; point data.dir= at a folder with {wanted}{hint}"
    )


def read_rows(task: TaskSpec, file: Path, labelled: bool = True) -> Rows:
    """All rows of a file, by its suffix: .tsv (quotes are text, as in GLUE), .csv, .jsonl or .json (a row a line),
    .parquet. A byte-order mark and CRLF are accepted.

    labelled: False reads the texts alone, of a test set.

    Raises InputError with file and line on a missing column, and on rows that cannot be read (bytes that are not UTF-8,
    a wrong number of fields, a text that is none, a label outside the task's set): how many there are, and the first of
    them. With `files.skip_malformed` they are left out instead, counted and reported.
    """
    texts = task.files.text or task.text
    if not labelled:
        texts = task.files.test_text or texts
    columns = [*texts, *([task.files.label] if labelled else [])]
    records = _reader(file)(file, columns, task.files.header if labelled else None)
    read_label = (lambda value, place: _label(task, value, place)) if labelled else None
    # Submissions count the rows of a test set: none may be left out.
    return collect_rows(records, texts, read_label, str(file), skip=task.files.skip_malformed and labelled)


def collect_rows(
    records: Iterable[Record], texts: list[str], read_label: ReadLabel | None, source: str, skip: bool
) -> Rows:
    """Rows out of records of the columns `texts` and, where `read_label` is given, a label; see `read_rows` for faults."""
    width = len(texts) + (read_label is not None)
    values: list[list[Any]] = [[] for _ in range(width)]
    faults: list[str] = []
    empty = 0
    for place, fields in records:
        try:
            if isinstance(fields, Malformed):
                raise fields
            row: list[Any] = [_text(field, name, place) for field, name in zip(fields, texts)]
            empty += any(not text.strip() for text in row)
            if read_label is not None:
                row.append(read_label(fields[-1], place))
        except Malformed as fault:
            faults.append(str(fault))
            continue
        for column, value in zip(values, row):
            column.append(value)
    _report(source, faults, empty, skip, all_of_them=not values[0])
    if not values[0]:
        raise InputError(f"{source} has no rows; a split must not be empty")
    names = ["text_a", "text_b"][: len(texts)] + (["label"] if read_label else [])
    return dict(zip(names, values))


def _report(source: str, faults: list[str], empty: int, skip: bool, all_of_them: bool) -> None:
    if empty:
        log.warning("%s: %d rows have an empty text; they are kept", source, empty)
    if not faults:
        return
    shown = "; ".join(faults[:SHOWN_FAULTS]) + (f"; and {len(faults) - SHOWN_FAULTS} more" if faults[3:] else "")
    count = f"{len(faults)} row{'s' if len(faults) > 1 else ''} of {Path(source).name} cannot be read"
    if all_of_them:
        raise InputError(f"{count}, and no other is there: {shown}")
    if not skip:
        raise InputError(f"{count}: {shown}. Mend the file, or leave them out with task.files.skip_malformed=true")
    log.warning("%s and left out: %s", count, shown)


def _reader(file: Path) -> Callable[[Path, list[str], list[str] | None], Iterator[Record]]:
    readers = {".tsv": _read_tsv, ".txt": _read_tsv, ".csv": _read_csv, ".jsonl": _read_jsonl, ".json": _read_jsonl}
    readers[".parquet"] = _read_parquet
    if file.suffix.lower() not in readers:
        raise InputError(
            f"{file}: rows in {file.suffix or 'files without a suffix'} are unknown; use {', '.join(readers)}"
        )
    return readers[file.suffix.lower()]


def _read_tsv(file: Path, columns: list[str], header: list[str] | None) -> Iterator[Record]:
    lines = _lines(file)
    rows = ((number, line if isinstance(line, Malformed) else line.split("\t")) for number, line in lines)
    return _split_fields(file, columns, header, rows, "tab")


def _read_csv(file: Path, columns: list[str], header: list[str] | None) -> Iterator[Record]:
    bad: list[tuple[int, Malformed]] = []

    def texts() -> Iterator[str]:
        for number, line in _lines(file, keep_end=True):
            if isinstance(line, Malformed):
                bad.append((number, line))
                line = "\n"
            yield line

    def rows() -> Iterator[tuple[int, Any]]:
        reader = csv.reader(texts(), strict=True)
        while True:
            first = reader.line_num + 1
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
                        f"{reader.line_num} ({error}); mend the file: how many rows stand between cannot be told"
                    ) from error
                fields = Malformed(f"{file}:{first}: {error}")  # type: ignore[assignment]
            if bad:  # the row that this line stood in, or was
                yield from bad
                bad.clear()
            elif fields != []:
                yield first, fields

    return _split_fields(file, columns, header, rows(), "comma")


def _split_fields(
    file: Path, columns: list[str], header: list[str] | None, rows: Iterable[tuple[int, Any]], kind: str
) -> Iterator[Record]:
    rows = iter(rows)
    if header is None:
        number, header = next(rows, (1, None))
        if header is None:
            raise InputError(f"{file} is empty; it needs a line of column names, and rows")
        if isinstance(header, Malformed):
            raise InputError(str(header))
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
                Malformed(f"{where}: {len(fields)} {kind}-separated fields where the header has {len(header)}"),
            )
        else:
            yield where, [fields[place] for place in places]


def _read_jsonl(file: Path, columns: list[str], header: list[str] | None) -> Iterator[Record]:
    for number, line in _lines(file):
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
        raise InputError(f"{file} is damaged behind row {number} ({str(error).splitlines()[0]})") from error


def _lines(file: Path, keep_end: bool = False) -> Iterator[tuple[int, Any]]:
    """Numbered lines. Only \\n and \\r\\n end a line: a text may hold other separators of Unicode."""
    with open(file, "rb") as stream:
        for number, raw in enumerate(stream, start=1):
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                byte = error.object[error.start]  # of what follows a byte-order mark
                yield number, Malformed(f"{file}:{number}: byte {error.start} is not UTF-8 (0x{byte:02x})")
                continue
            yield number, text if keep_end else text.rstrip("\n").removesuffix("\r")


def _text(value: Any, column: str, place: str) -> str:
    if not isinstance(value, str):
        raise Malformed(f"{place}: {column} is {type(value).__name__} {value!r}, not a text")
    return value


def _label(task: TaskSpec, value: Any, place: str) -> int | float:
    kind, names = task.files.labels_as, task.labels
    text = str(value).strip()
    if kind == "names" and names and text in names:
        return names.index(text)
    if kind == "index" and names and text.isdecimal() and int(text) < len(names):
        return int(text)
    if kind == "number":
        try:
            score = float(text)
        except ValueError:
            score = math.nan
        if math.isfinite(score):
            return score
    allowed = {"names": names, "index": [str(i) for i in range(len(names or []))], "number": "a number (finite)"}[kind]
    raise Malformed(f"{place}: label {text!r} is outside the task's set; allowed: {allowed}")


def content_hash(files: list[Path]) -> str:
    """SHA-256 over the content of files, in their order; paths do not count."""
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
