"""TinyBERT's data augmentation (arXiv:1909.10351): variants of the training rows, as shards of tokenized rows in Arrow."""

import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value, concatenate_datasets
from datasets.arrow_writer import ArrowWriter
from tokenizers.pre_tokenizers import BertPreTokenizer

from bitkd.data.augment.candidates import Candidates, Sentence
from bitkd.data.augment.stop_words import STOP_WORDS
from bitkd.data.files import Rows
from bitkd.data.tasks import AugmentSpec
from bitkd.data.tokenized import encode_texts
from bitkd.errors import InputError

BLOCK = 64
"""Source rows whose candidates are found together; a constant, because results may depend on it in the last bit."""

SHARD_BLOCKS = 16
"""Blocks of a shard: what an interruption loses at most."""

SHARD_ROWS = BLOCK * SHARD_BLOCKS


@dataclass(frozen=True)
class ShardRecord:
    """What is known of a finished shard: its rows, those cut to the length, and the seconds that it took."""

    rows: int
    truncated: int
    seconds: float


class Augmenter:
    """Makes the augmented rows of any part of a task's rows; each row's choices come from its own number and the seed.

    A row gives itself and up to `variants` variants of each of its sentences, the other sentence kept. In a variant every
    word of letters that is no stop word is replaced, with `probability`, by one of its candidates.
    """

    def __init__(self, rows: Rows, tokenizer: Any, candidates: Candidates, spec: AugmentSpec, max_length: int) -> None:
        self.rows = rows
        self.columns = [name for name in ("text_a", "text_b") if name in rows]
        self.tokenizer = tokenizer
        self.candidates = candidates
        self.spec = spec
        self.max_length = max_length
        self.stop_words = STOP_WORDS if spec.stop_words is None else {word.lower() for word in spec.stop_words}

    @property
    def shards(self) -> int:
        """How many shards the rows make."""
        return -(-len(self.rows["label"]) // SHARD_ROWS)

    def shard(self, number: int) -> Iterator[dict[str, list[Any]]]:
        """The columns of a shard's augmented rows, block after block."""
        end = min((number + 1) * SHARD_ROWS, len(self.rows["label"]))
        for start in range(number * SHARD_ROWS, end, BLOCK):
            yield self.block(range(start, min(start + BLOCK, end)))

    def block(self, sources: range) -> dict[str, list[Any]]:
        """The augmented rows of some source rows: text_a, text_b (of pairs), label, index (the source row's number)."""
        sentences = [self._sentence(self.rows[column][i]) for i in sources for column in self.columns]
        found = iter(zip(sentences, self.candidates.find(sentences)))
        made: dict[str, list[Any]] = {name: [] for name in (*self.columns, "label", "index")}
        for i in sources:
            original = {column: self.rows[column][i] for column in self.columns}
            versions = [original]
            for place, column in enumerate(self.columns):
                sentence, candidates = next(found)
                random = np.random.default_rng([self.spec.seed, i, place])
                versions += [original | {column: text} for text in self._variants(sentence, candidates, random)]
            for version in versions:
                for column in self.columns:
                    made[column].append(version[column])
                made["label"].append(self.rows["label"][i])
                made["index"].append(i)
        return made

    def _sentence(self, text: str) -> Sentence:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        normal = backend.normalizer.normalize_str(text) if backend is not None and backend.normalizer else text
        words = [word for word, _ in BertPreTokenizer().pre_tokenize_str(normal)]
        replaceable = [
            i for i, word in enumerate(words) if re.fullmatch("[A-Za-z]+", word) and word.lower() not in self.stop_words
        ]
        return Sentence(words, replaceable)

    def _variants(self, sentence: Sentence, found: dict[int, list[str]], random: np.random.Generator) -> Iterator[str]:
        places = [i for i in sentence.replaceable if found.get(i)]
        seen = {" ".join(sentence.words)}
        if not places:
            return
        chances = random.random((self.spec.variants, len(places)))
        picks = random.random((self.spec.variants, len(places)))
        for chance, pick in zip(chances, picks):
            words = list(sentence.words)
            for place, replaced, share in zip(places, chance < self.spec.probability, pick):
                if replaced:
                    words[place] = found[place][int(share * len(found[place]))]
            text = " ".join(words)
            if text not in seen:
                seen.add(text)
                yield text


def write_shard(augmenter: Augmenter, number: int, folder: Path) -> ShardRecord:
    """Write one shard and its record, unless both are there. A failing write (a full disk) leaves no part of either."""
    file, note = shard_file(folder, number), shard_file(folder, number).with_suffix(".json")
    if file.is_file() and (known := _read_note(note)):
        return known
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    temporary, temporary_note = (file.with_suffix(f".{os.getpid()}.{kind}") for kind in ("tmp", "note"))
    truncated = 0
    label = Value("float64" if isinstance(augmenter.rows["label"][0], float) else "int64")
    texts = {column: Value("string") for column in augmenter.columns}
    tokens = {"input_ids": List(Value("int32")), "length": Value("int32")}
    if "token_type_ids" in augmenter.tokenizer.model_input_names:
        tokens["token_type_ids"] = List(Value("int8"))
    features = Features({**texts, "label": label, "index": Value("int64"), **tokens})
    try:
        writer = ArrowWriter(path=str(temporary), features=features)
        for block in augmenter.shard(number):
            encoded = encode_texts(
                augmenter.tokenizer, [block[name] for name in augmenter.columns], augmenter.max_length
            )
            truncated += sum(encoded["truncated"])
            writer.write_batch({**block, **{name: encoded[name] for name in tokens}})
        rows, _ = writer.finalize()
        record = ShardRecord(rows, truncated, round(time.monotonic() - began, 3))
        temporary_note.write_text(json.dumps(vars(record)))
        for written in (temporary_note, temporary):
            with open(written, "rb") as stream:
                os.fsync(stream.fileno())
        os.replace(temporary_note, note)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
        temporary_note.unlink(missing_ok=True)
    return record


def _read_note(file: Path) -> ShardRecord | None:
    try:
        return ShardRecord(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):  # lost in a power cut: the shard is made again
        return None


def shard_file(folder: Path, number: int) -> Path:
    """Where a shard is, or will be."""
    return folder / f"shard-{number:05d}.arrow"


def load_shards(folder: Path) -> Dataset:
    """The augmented rows in a folder, memory-mapped."""
    files = sorted(folder.glob("shard-*.arrow"))
    if not files:
        raise InputError(f"{folder} has no shard-*.arrow; name a folder that `bitkd augment` made")
    return concatenate_datasets([Dataset.from_file(str(file)) for file in files])
