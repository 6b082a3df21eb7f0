"""TinyBERT's data augmentation (arXiv:1909.10351): variants of training rows, in Arrow files (shards) of tokenized rows."""

import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value, concatenate_datasets
from datasets.arrow_writer import ArrowWriter
from datasets.features.features import require_decoding
from tokenizers.pre_tokenizers import BertPreTokenizer

from bitkd.data.augment.stop_words import STOP_WORDS
from bitkd.data.augment.words import Candidates, Sentence
from bitkd.data.files import Rows
from bitkd.data.tasks import AugmentSpec
from bitkd.data.tokenized import SECOND, encode_apart, encode_texts
from bitkd.errors import InputError

BLOCK = 64
"""Source rows whose candidates are found together. A constant, because results may depend on it in the last bit."""

SHARD_BLOCKS = 16
"""Blocks in a shard. An interruption loses at most one shard of each process."""

SHARD_ROWS = BLOCK * SHARD_BLOCKS


@dataclass(frozen=True)
class ShardRecord:
    """Metadata of a finished shard."""

    rows: int
    truncated: int
    """Rows that were truncated to max_length."""

    seconds: float
    """Time that it took."""


class Augmenter:
    """Makes augmented rows of any part of a task's rows. A row's choices depend only on its number and the seed.

    A row yields itself and up to `variants` variants of each of its sentences, the other sentence unchanged. In a variant
    every word of letters that is not a stop word is replaced, with `probability`, by one of its candidates.

    rows: the task's rows as texts (`TaskRows.train_texts`).
    tokenizer: the run's; it splits texts into words.
    candidates: gives the words to choose from.
    spec: how many variants, how likely a replacement, which seed.
    max_length: tokens of an augmented row at most.
    apart: whether the two texts of a row are tokenized by themselves (`encode_apart`).
    """

    def __init__(
        self,
        rows: Rows,
        tokenizer: Any,
        candidates: Candidates,
        spec: AugmentSpec,
        max_length: int,
        apart: bool = False,
    ) -> None:
        self.rows = rows
        self.columns = [name for name in ("text_a", "text_b") if name in rows]
        self.tokenizer = tokenizer
        self.candidates = candidates
        self.spec = spec
        self.max_length = max_length
        self.apart = apart
        self.stop_words = STOP_WORDS if spec.stop_words is None else {word.lower() for word in spec.stop_words}

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-len(self.rows["label"]) // SHARD_ROWS)

    def shard(self, number: int) -> Iterator[dict[str, list[Any]]]:
        """The columns of a shard's augmented rows, block after block."""
        end = min((number + 1) * SHARD_ROWS, len(self.rows["label"]))
        for start in range(number * SHARD_ROWS, end, BLOCK):
            yield self.block(range(start, min(start + BLOCK, end)))

    def block(self, sources: range) -> dict[str, list[Any]]:
        """The augmented rows of the source rows `sources`: text_a, text_b (of pairs), label, index (the source row's
        number).
        """
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
    """Write one shard and its record, unless both are there. If a write fails (on a full disk), no part of either is left."""
    file, record_file = shard_file(folder, number), shard_file(folder, number).with_suffix(".json")
    if file.is_file() and (finished := _read_record(record_file)):
        return finished
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    temporary, temporary_record = (file.with_suffix(f".{os.getpid()}.{kind}") for kind in ("tmp", "record"))
    truncated = 0
    label = Value("float64" if isinstance(augmenter.rows["label"][0], float) else "int64")
    texts = {column: Value("string") for column in augmenter.columns}
    encode, ends = (encode_apart, ("", SECOND)) if augmenter.apart else (encode_texts, ("",))
    tokens = {**{f"input_ids{end}": List(Value("int32")) for end in ends}, "length": Value("int32")}
    if "token_type_ids" in augmenter.tokenizer.model_input_names:
        tokens |= {f"token_type_ids{end}": List(Value("int8")) for end in ends}
    features = Features({**texts, "label": label, "index": Value("int64"), **tokens})
    blocks: list[pa.Table] = []
    try:
        writer = ArrowWriter(path=str(temporary), features=features)
        for block in augmenter.shard(number):
            encoded = encode(augmenter.tokenizer, [block[name] for name in augmenter.columns], augmenter.max_length)
            truncated += sum(encoded["truncated"])
            columns = {**block, **{name: encoded[name] for name in tokens}}
            blocks.append(pa.Table.from_pydict(columns, schema=features.arrow_schema))
        # As one record batch: reading rows at random is slower with many of them.
        shard = pa.concat_tables(blocks)
        writer.write_table(shard, writer_batch_size=len(shard))
        rows, _ = writer.finalize()
        record = ShardRecord(rows, truncated, round(time.monotonic() - began, 3))
        temporary_record.write_text(json.dumps(vars(record)))
        for written in (temporary_record, temporary):
            with open(written, "rb") as stream:
                os.fsync(stream.fileno())
        os.replace(temporary_record, record_file)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
        temporary_record.unlink(missing_ok=True)
    return record


def _read_record(file: Path) -> ShardRecord | None:
    try:
        return ShardRecord(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):  # damaged when the machine failed: the shard is made again
        return None


def shard_file(folder: Path, number: int) -> Path:
    """The file of a shard."""
    return folder / f"shard-{number:05d}.arrow"


def load_shards(folder: Path) -> Dataset:
    """The augmented rows in a folder, memory-mapped. Raises InputError if it has none."""
    files = sorted(folder.glob("shard-*.arrow"))
    if not files:
        raise InputError(f"{folder} has no shard-*.arrow; name a folder that `bitkd augment` made")
    shards = [Dataset.from_file(str(file)) for file in files]
    if odd := next((name for name, feature in shards[0].features.items() if require_decoding(feature)), None):
        # Such a column may name other files, which reading a row would open.
        raise InputError(f"{folder}: its column {odd} is of a type that rows of a task do not have; augment again")
    return concatenate_datasets(shards)
