"""Documents of a text corpus, read one after another: from text files, or from a dataset on the hub."""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from bitkd.data.files import content_hash
from bitkd.data.formats import is_table
from bitkd.data.hub import hub_revision, load_hub_dataset
from bitkd.data.lines import Malformed, read_lines
from bitkd.errors import InputError

_HEADING = re.compile(r"^ ?= [^=](.*[^=])? = ?$")


@dataclass
class HubCorpusSpec:
    """A corpus on the Hugging Face hub."""

    path: str = ""
    """Dataset id; empty: the corpus is `data.corpus`."""

    name: str | None = None
    """Configuration of the dataset."""

    split: str = "train"
    """Split that is read."""

    text: str = "text"
    """Column of the text; a row is a document."""


READ_ROWS = 100
"""Rows of a hub's dataset that are read at once."""


class Documents(Protocol):
    """A corpus that can be read from any of its documents on."""

    def read(self, start: int = 0) -> Iterator[str]:
        """The documents from number `start` on."""

    def fingerprint(self) -> str:
        """A hash that changes when the content does."""


class FileDocuments:
    """Text files, and the *.txt and *.txt.gz files of folders in order of name. Raises InputError if a path has none, or
    is a table.
    """

    def __init__(self, paths: list[str]) -> None:
        self.files = list(_text_files(paths))

    def read(self, start: int = 0) -> Iterator[str]:
        number = 0
        for file in self.files:
            for document in read_documents(file):
                if number >= start:
                    yield document
                number += 1

    def fingerprint(self) -> str:
        return content_hash(self.files)


class HubDocuments:
    """The rows of a dataset on the hub. With `streaming`, nothing of it is kept on the disk."""

    def __init__(self, spec: HubCorpusSpec, streaming: bool) -> None:
        self.spec = spec
        self.streaming = streaming
        self._rows: Any = None

    def read(self, start: int = 0) -> Iterator[str]:
        # `.iter()`, not a for loop: the loop would divide the rows among loader processes, which Stream does itself.
        batches = self._open().skip(start).iter(batch_size=READ_ROWS)
        for text in itertools.chain.from_iterable(batch[self.spec.text] for batch in batches):
            if not isinstance(text, str):
                found = type(text).__name__
                raise InputError(
                    f"{self.spec.path}: {self.spec.text} is {found}, not a text; name data.hub_corpus.text="
                )
            yield text

    def fingerprint(self) -> str:
        spec = self.spec
        return hashlib.sha256(json.dumps([self._revision, spec.name, spec.split, spec.text]).encode()).hexdigest()

    @cached_property
    def _revision(self) -> str:
        return hub_revision(self.spec.path)

    def _open(self) -> Any:
        if self._rows is None:
            spec = self.spec
            found = load_hub_dataset(spec.path, spec.name, self.streaming, self._revision, setting="data.corpus=")
            if spec.split not in found:
                raise InputError(f"{spec.path} has no split {spec.split}; it has {', '.join(found)}")
            rows = found[spec.split]
            columns = rows.column_names
            if columns is not None and spec.text not in columns:
                raise InputError(f"{spec.path} has no column {spec.text}; it has {columns}; name data.hub_corpus.text=")
            self._rows = rows
        return self._rows


def _text_files(paths: list[str]) -> Iterator[Path]:
    for name in paths:
        path = Path(name).expanduser()
        found = sorted([*path.rglob("*.txt"), *path.rglob("*.txt.gz")]) if path.is_dir() else [path]
        if not path.exists() or not found:
            what = "there is no such file" if not path.exists() else "the folder has no .txt file"
            raise InputError(f"data.corpus: {path}: {what}; name text files or folders with *.txt files")
        if is_table(path.name) and path.is_file() and not path.name.lower().endswith((".txt", ".txt.gz")):
            raise InputError(
                f"data.corpus: {path} is a table; write its texts into a .txt file, a blank line after each"
            )
        yield from found


def read_documents(file: Path) -> Iterator[str]:
    """The documents of a text file, their lines joined by spaces; the file is never held in memory.

    A top-level heading of WikiText (" = Title = ") starts a document; in files without any, a blank line ends one; in
    files without either, every line is a document.
    """
    headings, blanks = _dividers(file)
    document: list[str] = []
    for line in _lines(file):
        text = line.strip()
        ends = _HEADING.match(line) if headings else not text if blanks else True
        if ends and document:
            yield " ".join(document)
            document = []
        if text:
            document.append(text)
    if document:
        yield " ".join(document)


def _dividers(file: Path) -> tuple[bool, bool]:
    """Whether headings and whether blank lines divide the documents of a file."""
    blank = blanks = False
    for line in _lines(file):
        if _HEADING.match(line):
            return True, blanks
        blanks = blanks or blank  # a blank line at the very end divides nothing
        blank = not line.strip()
    return False, blanks


def _lines(file: Path) -> Iterator[str]:
    for _, line in read_lines(file):
        if isinstance(line, Malformed):
            raise InputError(f"{line}; save the file as UTF-8")
        yield line
