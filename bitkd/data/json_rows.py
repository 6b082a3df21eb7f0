"""Rows of a JSON file: one object per line, or one array of objects."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitkd.data.lines import Malformed, first_character, read_lines, read_text
from bitkd.errors import InputError, shorten


class JsonObject(dict[str, Any]):
    """A JSON object that knows which of its keys stand in it twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.repeated = [] if len(self) == len(pairs) else [k for k, n in Counter(k for k, _ in pairs).items() if n > 1]


def read_json_rows(file: Path) -> Iterator[tuple[str, Any]]:
    """The place of each row (file and line, or number in the array), and what stands there: a JsonObject, another JSON
    value, or Malformed. Raises InputError if no row of the file can be told from another.
    """
    return _array_rows(file) if file.is_file() and first_character(file) == "[" else _line_rows(file)


def _line_rows(file: Path) -> Iterator[tuple[str, Any]]:
    first = True
    for number, line in read_lines(file):
        where = f"{file}:{number}"
        if isinstance(line, Malformed):
            yield where, line
            continue
        if not line.strip():
            continue
        try:
            row = _parse(line)
        except ValueError as error:
            if first and file.is_file() and (whole := _whole_object(file)) is not None:
                raise InputError(
                    f"{file} is one JSON object, with the keys {shorten(list(whole))}; write one object for each row: one "
                    "per line, or an array of them"
                ) from error
            row = Malformed(f"{where}: no JSON ({error})")
        first = False
        yield where, row


def _array_rows(file: Path) -> Iterator[tuple[str, Any]]:
    try:
        rows = _parse(read_text(file))
    except json.JSONDecodeError as error:
        raise InputError(f"{file}:{error.lineno}: no JSON array ({error})") from error
    except ValueError as error:
        raise InputError(f"{file}: no JSON array ({error})") from error
    for number, row in enumerate(rows):
        yield f"{file}, row {number}", row


def _whole_object(file: Path) -> dict[str, Any] | None:
    try:
        found = _parse(read_text(file))
    except ValueError:
        return None
    return found if isinstance(found, JsonObject) else None


def _parse(text: str) -> Any:
    """Raises ValueError if `text` is no JSON."""
    try:
        return json.loads(text, object_pairs_hook=JsonObject)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
