"""A text corpus for General KD: documents packed to the model's length (TinyBERT, arXiv:1909.10351)."""

import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from bitkd.data.base import TokenizedDataModule
from bitkd.data.files import content_hash
from bitkd.errors import InputError

SHORT_SHARE = 0.1
"""Share of sequences that are made shorter, so that positions at the end are not the only long-range ones seen."""

HELD_OUT = 0.02
"""Share of documents kept back to validate the loss on."""

_HEADING = re.compile(r"^ ?= [^=](.*[^=])? = ?$")


class CorpusDataModule(TokenizedDataModule):
    """Sequences [CLS] A [SEP] B [SEP] with token types, B from another document about half the time; or, with
    `segments=1`, [CLS] A [SEP]. No token is masked. The last 2 % of the documents are held out for validation.

    paths: text files, or folders whose *.txt files are read in order of name. Packing is deterministic by `pack_seed`,
    which is not the order of training: that is `seed`'s.
    """

    def __init__(
        self,
        paths: list[str],
        tokenizer: Any,
        max_length: int = 128,
        batch_size: int = 32,
        total_batches: int = 1,
        accumulate: int = 1,
        seed: int = 0,
        eval_batch_size: int = 64,
        num_workers: int = 0,
        segments: int = 2,
        pack_seed: int = 0,
    ) -> None:
        super().__init__(
            tokenizer, max_length, batch_size, total_batches, accumulate, seed, eval_batch_size, num_workers
        )
        if segments not in (1, 2):
            raise InputError(f"data.segments={segments} is unsupported; use 2 (pairs of segments) or 1")
        self.files = list(_text_files(paths))
        self.segments = segments
        self.pack_seed = pack_seed

    def setup(self, stage: str) -> None:
        if self.train_rows is not None:
            return
        documents = [document for file in self.files for document in read_documents(file)]
        encoded = [ids for ids in self._encode(documents) if ids]
        held_out = max(1, round(len(encoded) * HELD_OUT))
        if len(encoded) <= held_out:
            raise InputError(
                f"data.corpus holds {len(encoded)} documents in {len(self.files)} files; it needs at least two "
                "(blank lines divide documents)"
            )
        self.train_rows = Dataset.from_list(list(self._pack(encoded[:-held_out])))
        self.dev_rows = {"dev": Dataset.from_list(list(self._pack(encoded[-held_out:])))}

    def fingerprint(self) -> str:
        """Hash of the files' content, in their order; paths do not count."""
        return content_hash(self.files)

    def share(self, other: "CorpusDataModule") -> "CorpusDataModule":
        """Use the sequences that `other` has packed already."""
        self.train_rows, self.dev_rows = other.train_rows, other.dev_rows
        return self

    def _encode(self, documents: list[str]) -> list[list[int]]:
        if not documents:
            return []
        return self.tokenizer(documents, add_special_tokens=False, return_attention_mask=False, verbose=False)[
            "input_ids"
        ]

    def _pack(self, documents: list[list[int]]) -> Iterator[dict[str, Any]]:
        """Cut every document into segments; each token stands once as A or as the continuation of an A."""
        random = np.random.default_rng(self.pack_seed)
        special = self.tokenizer.num_special_tokens_to_add(pair=self.segments == 2)
        room = self.max_length - special
        if room < self.segments:
            raise InputError(f"data.max_length={self.max_length} leaves no room for text; use at least 8")
        index = 0
        for number, document in enumerate(documents):
            position = 0
            while position < len(document):
                length = room if random.random() >= SHORT_SHARE else int(random.integers(self.segments, room + 1))
                first_length = length if self.segments == 1 else int(random.integers(1, length))
                first = document[position : position + first_length]
                position += len(first)
                second: list[int] | None = None
                if self.segments == 2:
                    second = document[position : position + length - len(first)]
                    if not second or (random.random() < 0.5 and len(documents) > 1):
                        # From elsewhere; the continuation is left for the next sequence.
                        second = self._foreign(documents, number, length - len(first), random)
                    else:
                        position += len(second)
                yield {**self._join(first, second), "index": index}
                index += 1

    @staticmethod
    def _foreign(documents: list[list[int]], number: int, length: int, random: np.random.Generator) -> list[int]:
        if len(documents) == 1:
            return documents[0][:length]
        other = documents[(number + int(random.integers(1, len(documents)))) % len(documents)]
        start = int(random.integers(0, max(1, len(other) - length + 1)))
        return other[start : start + length]

    def _join(self, first: list[int], second: list[int] | None) -> dict[str, Any]:
        """The model's own arrangement of special tokens around the segments."""
        ids: list[int] = []
        types: list[int] = []
        for segment, token, kind in self._template:
            piece = [token] if segment is None else (first, second or [])[segment]
            ids += piece
            types += [kind] * len(piece)
        row: dict[str, Any] = {"input_ids": ids, "attention_mask": [1] * len(ids), "length": len(ids)}
        return row | ({"token_type_ids": types} if "token_type_ids" in self.tokenizer.model_input_names else {})

    @cached_property
    def _template(self) -> list[tuple[int | None, int, int]]:
        """(segment or null for a special token, token, token type), read off an example: transformers 5 offers no call
        that adds special tokens to ids.
        """
        example = self.tokenizer(*["a"] * self.segments, return_token_type_ids=True)
        parts = zip(example.sequence_ids(0), example["input_ids"], example["token_type_ids"])
        template: list[tuple[int | None, int, int]] = []
        for part in parts:
            if part[0] is None or not template or template[-1][0] != part[0]:
                template.append(part)
        return template


def _text_files(paths: list[str]) -> Iterator[Path]:
    for name in paths:
        path = Path(name).expanduser()
        found = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
        if not path.exists() or not found:
            what = "there is no such file" if not path.exists() else "the folder has no .txt file"
            raise InputError(f"data.corpus: {path}: {what}; name text files or folders with *.txt files")
        yield from found


def read_documents(file: Path) -> Iterator[str]:
    """The documents of a text file, their lines joined by spaces.

    A top-level heading of WikiText (" = Title = ") starts a document; in files without any, a blank line ends one; in
    files without either, every line is a document.
    """
    content = file.read_bytes()
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        # The error's own content and position: those after a byte-order mark.
        number = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{file}:{number}: a byte is not UTF-8 (0x{error.object[error.start]:02x}); save the file as UTF-8"
        ) from error
    headings = any(_HEADING.match(line) for line in lines)
    blanks = any(not line.strip() for line in lines[:-1])
    document: list[str] = []
    for line in lines:
        text = line.strip()
        ends = _HEADING.match(line) if headings else not text if blanks else True
        if ends and document:
            yield " ".join(document)
            document = []
        if text:
            document.append(text)
    if document:
        yield " ".join(document)
