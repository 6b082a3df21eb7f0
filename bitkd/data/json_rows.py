"""Rows of a JSON file: one object per line, or one array of objects."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from bitkd.data.lines import Malformed, read_lines
from bitkd.errors import InputError, shorten

Lines = Iterable[tuple[int, str | Malformed]]


class JsonObject(dict[str, Any]):
    """A JSON object that knows which of its keys stand in it twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.repeated = [] if len(self) == len(pairs) else [k for k, n in Counter(k for k, _ in pairs).items() if n > 1]


def read_json_rows(file: Path) -> Iterator[tuple[str, Any]]:
    """The place of each row (file and line, or number in the array), and what stands there: a JsonObject, another JSON
    value, or Malformed. Raises InputError if no row of the file can be told from another.
    """
    lines = read_lines(file, keep_end=True)
    first = next((found for found in lines if isinstance(found[1], Malformed) or found[1].strip()), None)
    if first is None:
        return
    number, line = first
    is_array = isinstance(line, str) and line.lstrip().startswith("[")
    lines = chain([first], lines)
    yield from _array_rows(file, number, lines) if is_array else _line_rows(file, lines)


def _line_rows(file: Path, lines: Lines) -> Iterator[tuple[str, Any]]:
    first = True
    for number, line in lines:
        where = f"{file}:{number}"
        if isinstance(line, Malformed):
            yield where, line
            continue
        if not line.strip():
            continue
        try:
            row = _parse(line)
        except ValueError as error:
            if first and (whole := whole_object(file)) is not None:
                raise InputError(
                    f"{file} is one JSON object, with the keys {shorten(list(whole))}; write one object for each row: one "
                    "per line, or an array of them"
                ) from error
            row = Malformed(f"{where}: no JSON ({error})")
        first = False
        yield where, row


def _array_rows(file: Path, start: int, lines: Lines) -> Iterator[tuple[str, Any]]:
    """start: number of the first line."""
    try:
        rows = _parse("\n" * (start - 1) + _join(lines))
    except json.JSONDecodeError as error:
        raise InputError(f"{file}:{error.lineno}: no JSON array ({error})") from error
    except Malformed as error:
        raise InputError(f"{error}; save the file as UTF-8") from error
    except ValueError as error:
        raise InputError(f"{file}: no JSON array ({error})") from error
    for number, row in enumerate(rows):
        yield f"{file}, row {number}", row


def _join(lines: Lines) -> str:
    """Raises Malformed if a line is."""
    texts = []
    for _, line in lines:
        if isinstance(line, Malformed):
            raise line
        texts.append(line)
    return "".join(texts)


def whole_object(file: Path) -> dict[str, Any] | None:
    """The content of a file that is one object; None if it is not, or a pipe."""
    if not file.is_file():
        return None
    try:
        found = _parse(_join(read_lines(file, keep_end=True)))
    except ValueError:
        return None
    return found if isinstance(found, JsonObject) else None


def _parse(text: str) -> Any:
    """Raises ValueError if `text` is no JSON."""
    try:
        return json.loads(text, object_pairs_hook=JsonObject)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
