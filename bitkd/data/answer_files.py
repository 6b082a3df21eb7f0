"""Reads rows of question answering: SQuAD's JSON, or a table with a row for each question. Every error names its place."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bitkd.data.files import Rows, as_text, report_faults
from bitkd.data.formats import Record, read_records
from bitkd.data.json_rows import whole_object
from bitkd.data.lines import Malformed, read_lines
from bitkd.data.tasks import FilesSpec, TaskSpec
from bitkd.errors import InputError, shorten

ID, ANSWERS = "id", "answers"

Gold = dict[str, Any]
"""A right answer: `start`, its first character in the context, and `text`."""

ID_IN_JSON = re.compile(r'"id"\s*:\s*("(?:[^"\\]|\\.)*")')
COUNTED_OTHERWISE = (("bytes", "utf-8", 1), ("UTF-16 units, as in JavaScript", "utf-16-le", 2))
"""What else a file may count instead of characters: its name, the encoding, and bytes of it that are one."""


def read_answers(
    task: TaskSpec,
    file: Path,
    labelled: bool = True,
    suffix: str | None = None,
    others: Sequence[list[str]] = (),
) -> Rows:
    """The rows of a file: columns id, text_a (question), text_b (context) and, if `labelled`, label: a list of `Gold`, empty
    if the question has no answer.

    A .json file may be nested as SQuAD's own. Any other is a table (see `bitkd.data.formats.read_records`) with the columns
    id, those of the texts and that of the answers; an answer field is {"text": [...], "answer_start": [...]}, or a list of
    objects with one text and one answer_start each.

    suffix: read the file as if its name ended so.  others: names of texts and answers that a table may have instead.

    Raises InputError with file, place and id of the first rows that cannot be read. With `files.skip_malformed` they are
    left out, counted and reported.
    """
    spec = task.files
    texts = spec.text or task.text
    if not labelled:
        texts = spec.test_text or texts
    nested = whole_object(file) if (suffix or file.name).lower().removesuffix(".gz").endswith(".json") else None
    if nested is not None:
        records: Iterable[Record] = _nested_records(file, nested, labelled)
    else:
        columns = [ID, *texts, *([column_of_answers(spec.label)] if labelled else [])]
        choices = [[ID, *names[:2], *map(column_of_answers, names[2:])] for names in others]
        records = read_records(file, columns, suffix=suffix, others=choices)
    # A submission has an answer for every row of a test set, so none may be left out.
    return collect_answer_rows(task, records, texts, labelled, str(file), skip=spec.skip_malformed and labelled)


def column_of_answers(label: str) -> str:
    """The column of the answers, `answers` if the task does not name one.  label: `files.label` or `hub.label`."""
    return ANSWERS if label == FilesSpec().label else label


def collect_answer_rows(
    task: TaskSpec, records: Iterable[Record], texts: list[str], labelled: bool, source: str, skip: bool
) -> Rows:
    """Make rows from records whose fields are id, question, context and, if `labelled`, answers.

    texts: names of the question and of the context, and source: of the file or split, for messages.  skip: leave out
    malformed rows instead of raising, see `read_answers`.
    """
    names = ["id", "text_a", "text_b", *(["label"] if labelled else [])]
    rows: Rows = {name: [] for name in names}
    places: dict[str, str] = {}
    faults: list[str] = []
    for place, fields in records:
        try:
            if isinstance(fields, Malformed):
                raise fields
            key = _read_id(fields[0], place, places)
            row: list[Any] = [key, *(_read_text(*found, place) for found in zip(fields[1:], texts))]
            if labelled:
                row.append(_read_golds(fields[3], row[2], place))
                if not row[3] and not task.answers.unanswerable:
                    raise Malformed(
                        f"{place}: it has no answer; correct it, or set task.answers.unanswerable=true if the task has such "
                        "questions"
                    )
        except Malformed as fault:
            faults.append(str(fault))
            continue
        places[key] = place
        for name, value in zip(names, row):
            rows[name].append(value)
    report_faults(source, faults, 0, skip, none_left=not rows["id"])
    if not rows["id"]:
        raise InputError(f"{source} has no rows; a split must not be empty")
    return rows


def _nested_records(file: Path, document: dict[str, Any], labelled: bool) -> Iterator[Record]:
    """The questions of a file in SQuAD's form: data, paragraphs (with a context), qas. Raises InputError if it has
    another."""
    lines: dict[str, int] | None = None
    for place, context, found in _questions(file, document):
        if isinstance(found, Malformed):
            yield place, found
            continue
        key = found.get(ID)
        if isinstance(key, str):
            if lines is None:
                lines = _lines_of_ids(file)
            where = f":{lines[key]}" if key in lines else ""
            place = f"{file}{where}, {place} (id {shorten(key)[1:-1]})"
        else:
            place = f"{file}, {place}"
        wanted = [ID, "question", *([ANSWERS] if labelled and not found.get("is_impossible") else [])]
        if missing := [name for name in wanted if name not in found]:
            yield place, Malformed(f"{place}: {missing[0]} is missing; the question has {shorten(list(found))}")
            continue
        answers = found.get(ANSWERS) or []
        texts = answers.get("text") if isinstance(answers, dict) else answers
        impossible = found.get("is_impossible", not texts)
        if labelled and isinstance(texts, list) and impossible != (not texts):
            yield place, Malformed(f"{place}: is_impossible is {impossible}, but it has {len(texts)} answers")
            continue
        yield place, [found[ID], found["question"], context, *([answers] if labelled else [])]


def _questions(file: Path, document: dict[str, Any]) -> Iterator[tuple[str, Any, dict[str, Any] | Malformed]]:
    """The path of each question in the document, its context, and the question or what is wrong there."""
    articles = document.get("data")
    if not isinstance(articles, list):
        raise InputError(
            f"{file} is one JSON object with the keys {shorten(list(document))}; SQuAD's form has a list under data. Or write "
            "one object for each row: one per line, or an array of them"
        )
    for a, article in enumerate(articles):
        for p, paragraph in enumerate(_children(article, "paragraphs")):
            place = f"data[{a}].paragraphs[{p}]"
            if isinstance(paragraph, Malformed):
                yield f"data[{a}]", None, Malformed(f"{file}, data[{a}]: {paragraph}")
                continue
            for q, question in enumerate(_children(paragraph, "qas")):
                where = f"{place}.qas[{q}]"
                if isinstance(question, Malformed):
                    yield place, None, Malformed(f"{file}, {place}: {question}")
                elif not isinstance(question, dict):
                    yield where, None, Malformed(f"{file}, {where}: {shorten(question)} is no object")
                else:
                    yield where, paragraph.get("context"), question


def _children(parent: Any, name: str) -> list[Any]:
    """The list under a name, or what is wrong with it."""
    if isinstance(parent, dict) and isinstance(parent.get(name), list):
        return parent[name]
    return [Malformed(f"it has no list of {name}; it is {shorten(parent)}")]


def _lines_of_ids(file: Path) -> dict[str, int]:
    """The line of each id in a JSON file; none if the file is one line."""
    lines = list(read_lines(file))
    if len(lines) == 1:
        return {}
    return {json.loads(key): number for number, line in lines for key in ID_IN_JSON.findall(str(line))}


def _read_id(value: Any, place: str, places: dict[str, str]) -> str:
    if isinstance(value, bool | float) or not isinstance(value, str | int) or value == "":
        raise Malformed(f"{place}: id is {shorten(value)}, not a text")
    key = str(value)
    if key in places:
        raise Malformed(f"{place}: the id {shorten(key)} is also that of {places[key]}; ids must differ")
    return key


def _read_text(value: Any, column: str, place: str) -> str:
    text = as_text(value, column, place)
    if not text.strip():
        raise Malformed(f"{place}: {column} is empty")
    return text


def _read_golds(value: Any, context: str, place: str) -> list[Gold]:
    """The answers of a field, each checked to stand in the context. Raises Malformed."""
    if isinstance(value, dict):
        missing = next((name for name in ("text", "answer_start") if not isinstance(value.get(name), list)), None)
        if missing:
            raise Malformed(f"{place}: answers have no list {missing}; they are {shorten(dict(value))}")
        texts, starts = value["text"], value["answer_start"]
        if len(texts) != len(starts):
            raise Malformed(
                f"{place}: answers have {len(texts)} text and {len(starts)} answer_start; give one for each"
            )
    elif isinstance(value, list) and all(isinstance(answer, dict) for answer in value):
        for answer in value:
            if missing := next((name for name in ("text", "answer_start") if name not in answer), None):
                raise Malformed(f"{place}: an answer has no {missing}; it is {shorten(dict(answer))}")
        texts, starts = [answer["text"] for answer in value], [answer["answer_start"] for answer in value]
    else:
        raise Malformed(
            f"{place}: answers are {type(value).__name__} {shorten(value)}; write "
            '{"text": [...], "answer_start": [...]}, in .jsonl, .json or .parquet'
        )
    return [_check_gold(start, text, context, place) for start, text in zip(starts, texts)]


def _check_gold(start: Any, text: Any, context: str, place: str) -> Gold:
    as_text(text, "the text of an answer", place)
    if not text.strip():
        raise Malformed(f"{place}: the text of an answer is empty; a question without an answer has empty lists")
    if isinstance(start, bool) or not isinstance(start, int) or start < 0:
        raise Malformed(f"{place}: answer_start is {shorten(start)}; it is a whole number of characters, from 0")
    if context.startswith(text, start):
        return {"start": start, "text": text}
    found = f"{place}: the answer {shorten(text)} does not stand at character {start} of its context"
    for unit, encoding, size in COUNTED_OTHERWISE:
        before = context.encode(encoding)[: size * start]
        if context.encode(encoding).startswith(text.encode(encoding), size * start):
            right = len(before.decode(encoding))
            raise Malformed(f"{found}, but at {right}: answer_start counts {unit}; count characters (Python's len)")
    places = [match.start() for match in re.finditer(re.escape(text), context)]
    if not places:
        raise Malformed(f"{found}, nor elsewhere in it ({shorten(context[start : start + len(text)])} stands there)")
    raise Malformed(f"{found}, but at {min(places, key=lambda place: abs(place - start))}")
