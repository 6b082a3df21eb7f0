"""Reads a task's rows from files. No row is left out without a warning; every error names its file and line."""

import glob
import hashlib
import logging
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from bitkd.data.formats import Record, is_table, read_records
from bitkd.data.lines import Malformed
from bitkd.data.tasks import TaskSpec
from bitkd.errors import InputError, shorten

Rows = dict[str, list[Any]]
"""Columns text_a, text_b (of pairs) and label (int, or float for a regression or a similarity; absent from a test set)."""

SHOWN_FAULTS = 3

ONE_LABEL = "a row has one label: tasks with several labels a row (multi-label) are not supported, see docs/data.md"

ReadLabel = Callable[[Any, str], int | float]
"""(field, place of the row) -> label. Raises Malformed if the field is no label."""

log = logging.getLogger(__name__)


def find_file(task: TaskSpec, name: str, data_dir: Path | str) -> Path:
    """The file `name` of a task in `data_dir/<folder>` or in `data_dir`. Raises InputError if neither has it."""
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        raise InputError(f"data.dir={data_dir}: there is no such folder; name the folder that holds the task's files")
    candidates = list(dict.fromkeys([root / task.files.folder / name, root / name]))
    for file in candidates:
        if file.is_file():
            return file
    looked = " and ".join(str(file) for file in candidates)
    pattern = f"{glob.escape(Path(name).name.split('.')[0])}.*"
    others = sorted({other.name for file in candidates for other in file.parent.glob(pattern) if is_table(other.name)})
    hint = f"; there is {', '.join(others)}: name the files under task.files" if others else ""
    wanted = Path(task.files.folder) / name
    raise InputError(
        f"task {task.name} has no {name}: looked at {looked}; point data.dir= at a folder with {wanted}{hint}"
    )


def read_rows(
    task: TaskSpec,
    file: Path,
    labelled: bool = True,
    suffix: str | None = None,
    others: Sequence[list[str]] = (),
) -> Rows:
    """All rows of a file, by its suffix: .tsv (quotes are text, as in GLUE), .csv, .jsonl or .json (one object per line,
    or one array of objects), .parquet; the text formats also with .gz.

    labelled: False reads only the texts, as of a test set.
    suffix, others: see `bitkd.data.formats.read_records`.

    Raises InputError with file and line if a column is missing, or if rows cannot be read: bytes that are not UTF-8, a
    wrong number of fields, a text that is not a string or has half of a surrogate pair, a label outside the task's set.
    The message counts these rows and shows the first ones. With `files.skip_malformed` they are left out, counted and
    reported instead.
    """
    texts = task.files.text or task.text
    if not labelled:
        texts = task.files.test_text or texts
    columns = [*texts, *([task.files.label] if labelled else [])]
    records = read_records(file, columns, task.files.header if labelled else None, suffix, others)
    read_label = (lambda value, place: as_label(task, value, place)) if labelled else None
    # A submission has a line for every row of a test set, so none may be left out.
    return collect_rows(records, texts, read_label, str(file), skip=task.files.skip_malformed and labelled)


def collect_rows(
    records: Iterable[Record], texts: list[str], read_label: ReadLabel | None, source: str, skip: bool
) -> Rows:
    """Make rows from records whose fields are the columns `texts` and, if `read_label` is given, a label.

    source: name of the file or split, for messages.  skip: leave out malformed rows instead of raising, see `read_rows`.
    """
    width = len(texts) + (read_label is not None)
    values: list[list[Any]] = [[] for _ in range(width)]
    faults: list[str] = []
    empty = 0
    for place, fields in records:
        try:
            if isinstance(fields, Malformed):
                raise fields
            row: list[Any] = [as_text(field, name, place) for field, name in zip(fields, texts)]
            empty += any(not text.strip() for text in row)
            if read_label is not None:
                row.append(read_label(fields[-1], place))
        except Malformed as fault:
            faults.append(str(fault))
            continue
        for column, value in zip(values, row):
            column.append(value)
    report_faults(source, faults, empty, skip, none_left=not values[0])
    if not values[0]:
        raise InputError(f"{source} has no rows; a split must not be empty")
    names = ["text_a", "text_b"][: len(texts)] + (["label"] if read_label else [])
    return dict(zip(names, values))


def report_faults(source: str, faults: list[str], empty: int, skip: bool, none_left: bool) -> None:
    if empty:
        log.warning("%s: %d rows have an empty text; they are kept", source, empty)
    if not faults:
        return
    shown = "; ".join(faults[:SHOWN_FAULTS]) + (f"; and {len(faults) - SHOWN_FAULTS} more" if faults[3:] else "")
    count = f"{len(faults)} row{'s' if len(faults) > 1 else ''} of {Path(source).name} cannot be read"
    if none_left:
        raise InputError(f"{count}, and there is no other: {shown}")
    if not skip:
        raise InputError(f"{count}: {shown}. Correct the file, or leave them out with task.files.skip_malformed=true")
    log.warning("%s and left out: %s", count, shown)


def as_text(value: Any, column: str, place: str) -> str:
    """A field of a text column. Raises Malformed if it is no text, or none that can be written in UTF-8."""
    if not isinstance(value, str):
        found = "missing (null)" if value is None else f"{type(value).__name__} {shorten(value)}, not a text"
        raise Malformed(f"{place}: {column} is {found}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(value[error.start]):04x}"
        raise Malformed(
            f"{place}: {column} has {half} at character {error.start}, half of a surrogate pair, which is no character"
        ) from error
    return value


def as_label(task: TaskSpec, value: Any, place: str) -> int | float:
    kind, names = "number" if task.has_numbers else task.files.labels_as, task.labels
    check_single_label(value, place)
    text = _word(value, names or [])
    if kind == "names" and names and text in names:
        return names.index(text)
    if kind == "index" and names and text.isdecimal() and len(text) < 10 and int(text) < len(names):
        return int(text)
    if kind == "number" and "_" not in text:  # Python's float() takes 1_000
        try:
            score = float(text)
        except ValueError:
            score = math.nan
        if math.isfinite(score):
            return number_label(task, score, place)
    allowed = {
        "names": shorten(names),
        "index": shorten([str(i) for i in range(len(names or []))]),
        "number": "a number (finite)",
    }[kind]
    hint = ""
    if names and len(parts := re.split(r"[,;|]\s*", text)) > 1 and set(parts) <= set(names):
        hint = f"; {ONE_LABEL}"
    raise Malformed(f"{place}: label {shorten(text)} is outside the task's set; allowed: {allowed}{hint}")


def number_label(task: TaskSpec, number: float, place: str) -> float:
    """The label that a number stands for: itself, or a cosine from 0 to 1.

    place: of the row, for messages.  Raises Malformed if it is outside the range of a similarity.
    """
    if not task.of_kind.cosines:
        return number
    low, high = task.similarity.lowest, task.similarity.highest
    if not low <= number <= high:
        raise Malformed(
            f"{place}: label {number:g} is outside task.similarity.lowest={low:g} to .highest={high:g}; set them to the range of "
            "the labels"
        )
    return (number - low) / (high - low)


def _word(value: Any, names: list[str]) -> str:
    """A label as it is written in a file of text: JSON has true, false and null, and Parquet the same values."""
    if isinstance(value, bool | None):
        word = {True: "true", False: "false", None: "null"}[value]
        return str(value) if isinstance(value, bool) and str(value) in names else word
    return str(value).strip()


def check_single_label(value: Any, place: str) -> None:
    """Raises Malformed if the label of a row is a list or another collection."""
    if isinstance(value, list | tuple | dict | set):
        raise Malformed(f"{place}: label is {type(value).__name__} {shorten(value)}; {ONE_LABEL}")


def content_hash(files: list[Path]) -> str:
    """SHA-256 over the content of files, in their order; paths do not count."""
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
