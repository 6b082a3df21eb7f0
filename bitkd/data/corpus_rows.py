"""The text corpus of General KD, packed into sequences: all of it, or only the dev set of a stream."""

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from datasets import Dataset

from bitkd.data.documents import Documents
from bitkd.data.packing import Packer
from bitkd.errors import InputError

HELD_OUT = 50
"""One document in this many is held out to validate the loss. If a corpus is packed as a whole, these are its last
documents; in a stream, every 50th of the first STREAM_HELD_OUT_FROM documents."""

STREAM_HELD_OUT_FROM = 5000


@dataclass(eq=False)
class PackedRows:
    """The base of both kinds of corpus. Sequences are packed as `Packer` describes."""

    documents: Documents
    tokenizer: Any
    max_length: int = 128
    """Tokens of a sequence at most, special ones included."""

    segments: int = 2
    """Segments of a sequence, 1 or 2."""

    masking: float = 0.0
    """Share of tokens that are masked as in BERT's pre-training."""

    pack_seed: int = 0
    """Seed of the packing of a whole corpus. The order of training depends on the seed of the LoaderSpec instead."""

    def __post_init__(self) -> None:
        self.packer = Packer(self.tokenizer, self.max_length, self.segments, self.masking)

    @property
    def dev_names(self) -> list[str]:
        return ["dev"]

    @property
    def fit_dev_names(self) -> list[str]:
        return self.dev_names

    def fingerprint(self) -> str:
        """Changes with the content of the corpus; paths do not count."""
        return self.documents.fingerprint()

    def pack(self, documents: list[list[int]]) -> Dataset:
        """Sequences of encoded documents, with the columns of the tokenizer, `length` and `index`."""
        rows = self.packer.pack(documents, np.random.default_rng(self.pack_seed))
        return Dataset.from_list([row | {"index": index} for index, row in enumerate(rows)])


class CorpusRows(PackedRows):
    """A corpus that fits into memory. It is packed at the first use.

    The first use raises InputError if it has fewer than two documents.
    """

    @property
    def train(self) -> Dataset:
        """The sequences to train on."""
        return self._packed[0]

    @property
    def dev(self) -> dict[str, Dataset]:
        """The sequences of the last documents, under the name `dev`."""
        return {"dev": self._packed[1]}

    @property
    def num_rows(self) -> dict[str, int]:
        """Number of sequences in `train` and in `dev`."""
        return {"train": len(self.train), "dev": len(self.dev["dev"])}

    @cached_property
    def _packed(self) -> tuple[Dataset, Dataset]:
        encoded = [ids for ids in self.packer.encode(list(self.documents.read())) if ids]
        held_out = max(1, round(len(encoded) / HELD_OUT))
        if len(encoded) <= held_out:
            raise _too_small(len(encoded))
        return self.pack(encoded[:-held_out]), self.pack(encoded[-held_out:])


class StreamRows(PackedRows):
    """A corpus that is read during training and not kept. Its training sequences are therefore never counted."""

    @cached_property
    def dev(self) -> dict[str, Dataset]:
        """The sequences of the held-out documents, under the name `dev`. Raises InputError if there are none."""
        first = itertools.islice(self.documents.read(), STREAM_HELD_OUT_FROM)
        held_out = [text for number, text in enumerate(first) if is_held_out(number)]
        encoded = [ids for ids in self.packer.encode(held_out) if ids]
        if not encoded:
            raise _too_small(sum(1 for _ in itertools.islice(self.documents.read(), HELD_OUT)))
        return {"dev": self.pack(encoded)}

    @property
    def num_rows(self) -> dict[str, int]:
        """Number of sequences in `dev`."""
        return {"dev": len(self.dev["dev"])}


def is_held_out(document: int) -> bool:
    """Whether a stream's document, by its number, is held out for validation."""
    return document < STREAM_HELD_OUT_FROM and document % HELD_OUT == HELD_OUT - 1


def _too_small(documents: int) -> InputError:
    return InputError(
        f"data.corpus holds {documents} documents; it needs at least two, a stream {HELD_OUT} "
        "(headings or blank lines divide documents)"
    )
