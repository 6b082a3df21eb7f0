"""Rows of a task from its files; nothing is dropped in silence, every fault has a file and a line."""

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitkd.data.tasks import TaskSpec
from bitkd.errors import InputError

Rows = dict[str, list[Any]]
"""Columns text_a, text_b (of pairs) and label (int, or float for a regression)."""


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
    raise InputError(
        f"task {task.name} has no {name}: looked at {looked}; point data.dir= at a folder with {task.files.folder}/{name}"
    )


def read_rows(task: TaskSpec, file: Path) -> Rows:
    """All rows of a tab-separated file. A byte-order mark and CRLF are accepted; quotes are text.

    Raises InputError with file and line on bytes that are not UTF-8, a missing column, a wrong number of fields, and a
    label outside the task's set.
    """
    lines = _lines(file)
    header, first = task.files.header, 1
    if header is None:
        line = next(lines, None)
        if line is None:
            raise InputError(f"{file} is empty; it needs a line of column names, and rows")
        header, first = line.split("\t"), 2
    columns = [*(task.files.text or task.text), task.files.label]
    missing = [column for column in columns if column not in header]
    if missing:
        raise InputError(
            f"{file}:1: column {missing[0]} is missing; the columns are {header}, the task needs {columns}"
        )
    places = [header.index(column) for column in columns]
    texts: list[list[str]] = [[] for _ in columns[:-1]]
    labels: list[int | float] = []
    for number, line in enumerate(lines, start=first):
        fields = line.split("\t")
        if len(fields) != len(header):
            raise InputError(
                f"{file}:{number}: {len(fields)} tab-separated fields where the header has {len(header)} ({header}); "
                "mend the line (a tab inside a text must be a space)"
            )
        labels.append(_label(task, fields[places[-1]], file, number))
        for column, place in zip(texts, places):
            column.append(fields[place])
    if not labels:
        raise InputError(f"{file} has no rows; a split must not be empty")
    return dict(zip(("text_a", "text_b"), texts)) | {"label": labels}


def _lines(file: Path) -> Iterator[str]:
    """Lines without their ends. Only \\n and \\r\\n end a line: a text may hold other separators of Unicode."""
    with open(file, "rb") as stream:
        for number, raw in enumerate(stream, start=1):
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{file}:{number}: byte {error.start} is not UTF-8 (0x{raw[error.start]:02x}); save the file as UTF-8"
                ) from error
            yield text.rstrip("\n").removesuffix("\r")


def _label(task: TaskSpec, text: str, file: Path, number: int) -> int | float:
    kind, names = task.files.labels_as, task.labels
    text = text.strip()
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
    raise InputError(f"{file}:{number}: label {text!r} is outside the task's set; allowed: {allowed}")


def content_hash(files: list[Path]) -> str:
    """SHA-256 over the content of files, in their order; paths do not count."""
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
