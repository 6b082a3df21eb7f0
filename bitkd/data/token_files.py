"""Reads sentences whose words have tags: from files of columns, as CoNLL-2003's, or from rows of lists."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from bitkd.data.files import ReadLabel, Rows, as_label, as_text, report_faults
from bitkd.data.formats import Record, read_records
from bitkd.data.lines import Malformed, read_lines
from bitkd.data.tasks import TaskSpec
from bitkd.errors import InputError, shorten

LISTS = (".jsonl", ".json", ".parquet")
"""Suffixes of files whose rows hold a list of words and a list of tags."""

COLUMNS = (".conll", ".txt", ".tsv", ".bio", ".train", ".testa", ".testb")
"""Suffixes of files with a word on each line and blank lines between sentences."""

DOCUMENT_START = "-DOCSTART-"
"""First field of a line between documents, which is no word."""

PlaceOf = Callable[[str, int], str]
"""(place of a sentence, number of a word) -> place of the word."""


def read_tokens(
    task: TaskSpec,
    file: Path,
    labelled: bool = True,
    suffix: str | None = None,
    others: Sequence[list[str]] = (),
) -> Rows:
    """All sentences of a file: `words`, a list of texts each, and `label`, the positions of their tags in the task's labels.

    In .jsonl, .json and .parquet each row has a list of words in the task's text column and a list of tags in the column
    `files.label`. The other formats have a line for each word, whose columns are separated by tabs or spaces, and a blank
    line between sentences; lines that start with -DOCSTART- are skipped. There the word is the first column and the tag
    the last one, or `files.header` names the columns.

    labelled: False reads only the words, as of a test set.  suffix: read the file as if its name ended so.  others:
    names that the columns of lists may have instead, if the file lacks the task's.

    Raises InputError with file and line if a column is missing, or if sentences cannot be read: bytes that are not UTF-8,
    a word that is empty or no text, a word without a tag, a tag outside the task's labels, lists of two lengths. The
    message counts these sentences and shows the first ones. With `files.skip_malformed` they are left out, counted and
    reported instead.
    """
    [words] = (None if labelled else task.files.test_text) or task.files.text or task.text
    columns = [words, *([task.files.label] if labelled else [])]
    ending = f".{(suffix or file.name).lower().removesuffix('.gz').rpartition('.')[2]}"
    if ending in LISTS:
        records, place_of = read_records(file, columns, suffix=suffix, others=others), _place_in_list
    elif ending in COLUMNS:
        records, place_of = _read_columns(file, columns, task.files.header), _place_in_lines
    else:
        raise InputError(
            f"{file}: sentences with tags in {ending} are unknown; use {', '.join(LISTS)} (a list of words and a list of "
            f"tags in each row) or {', '.join(COLUMNS)} (a word and its tag on each line), the text formats also with .gz"
        )
    read_tag = (lambda value, place: int(as_label(task, value, place))) if labelled else None
    # A test set's tags are written for every sentence, so none may be left out.
    return collect_sentences(records, read_tag, str(file), task.files.skip_malformed and labelled, place_of)


def _place_in_list(place: str, number: int) -> str:
    return f"{place}, word {number}"


def _place_in_lines(place: str, number: int) -> str:
    """The words of a sentence are on lines that follow each other."""
    file, _, line = place.rpartition(":")
    return f"{file}:{int(line) + number}"


def collect_sentences(
    records: Iterable[Record],
    read_tag: ReadLabel | None,
    source: str,
    skip: bool,
    place_of: PlaceOf = _place_in_list,
) -> Rows:
    """Make rows from records whose fields are a list of words and, if `read_tag` is given, a list of their tags.

    source: name of the file or split, for messages.  skip: leave out malformed sentences instead of raising, see
    `read_tokens`.
    """
    sentences: list[list[str]] = []
    tags: list[list[int | float]] = []
    faults: list[str] = []
    for place, fields in records:
        try:
            if isinstance(fields, Malformed):
                raise fields
            words = _list(fields[0], "words", place)
            sentence = [_word(word, place_of(place, number)) for number, word in enumerate(words)]
            if read_tag is not None:
                found = _list(fields[1], "tags", place)
                if len(found) != len(words):
                    raise Malformed(f"{place}: {len(words)} words, but {len(found)} tags; each word has one tag")
                tags.append([read_tag(tag, place_of(place, number)) for number, tag in enumerate(found)])
        except Malformed as fault:
            faults.append(str(fault))
            continue
        sentences.append(sentence)
    empty = sum(not sentence for sentence in sentences)
    report_faults(source, faults, empty, skip, none_left=not sentences)
    if not sentences:
        raise InputError(f"{source} has no sentences; a split must not be empty")
    return {"words": sentences, **({"label": tags} if read_tag is not None else {})}


def _list(value: Any, what: str, place: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        found = "missing (null)" if value is None else f"{type(value).__name__} {shorten(value)}"
        raise Malformed(f"{place}: a list of {what} is wanted; it is {found}")
    return list(value)


def _word(value: Any, place: str) -> str:
    word = as_text(value, "the word", place)
    if not word.strip():
        raise Malformed(f"{place}: the word is empty ({shorten(word)})")
    return word


def _read_columns(file: Path, columns: list[str], header: list[str] | None) -> Iterator[Record]:
    """The sentences of a file with a word on each line: lists of their words and, if two columns are wanted, of their tags."""
    if header is not None and (missing := [column for column in columns if header.count(column) != 1]):
        raise InputError(
            f"{file}: files.header={header} has {missing[0]} {header.count(missing[0])} times; name the column of the words "
            f"and that of the tags once: {columns}"
        )
    labelled = len(columns) > 1
    width = len(header) if header and labelled else None  # a test set may have the words alone
    start, sentence, fault = 0, list[list[str]](), list[Malformed]()
    for number, line in chain(read_lines(file), [(0, "")]):
        if isinstance(line, str) and (not line.strip() or line.startswith(DOCUMENT_START)):
            if start:
                places = [header.index(column) for column in columns] if header and width == len(header) else [0, -1]
                fields = [[word[place] for word in sentence] for place in places[: len(columns)]]
                yield f"{file}:{start}", fault[0] if fault else fields
            start, sentence, fault = 0, [], []
            continue
        start = start or number
        try:
            sentence.append(_fields(line, f"{file}:{number}", width, labelled))
            width = width or len(sentence[-1])
        except Malformed as found:
            fault.append(found)


def _fields(line: str | Malformed, place: str, width: int | None, labelled: bool) -> list[str]:
    """The columns of a line.  width: how many there have to be; None at the first line."""
    if isinstance(line, Malformed):
        raise line
    fields = [field.strip(" ") for field in line.split("\t")] if "\t" in line else re.split(" +", line.strip(" "))
    if labelled and len(fields) < 2:
        raise Malformed(f"{place}: {shorten(line)} has no tag; a line has a word and, in its last column, a tag")
    if width is not None and len(fields) != width:
        raise Malformed(
            f"{place}: {len(fields)} columns, and not {width}; they are separated by tabs, or else by spaces"
        )
    return fields
