"""The rows of a task: read, hashed and tokenized once for all trainings."""

import hashlib
import itertools
import json
import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from bitkd.data.files import Rows, check_single_label, collect_rows, content_hash, find_file, number_label
from bitkd.data.formats import Record
from bitkd.data.hub import SAMPLED_ROWS, load_hub_dataset, tokenizer_state, without_progress_bars
from bitkd.data.lines import Malformed
from bitkd.data.metrics import build_metrics
from bitkd.data.task_checks import check_metrics, check_task, check_test_set
from bitkd.data.tasks import HOLDOUT, Selection, TaskSpec, task_fingerprint
from bitkd.data.tokenized import encode_texts
from bitkd.errors import InputError, check_choices, shorten, writable

HOLDOUT_SHARE = 0.1
"""Share of each label's rows that is held out."""

UNKNOWN_SHARE = 0.2
"""Share of unknown tokens above which a warning is given."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Tokenized:
    train: Dataset
    dev: dict[str, Dataset]
    truncated: dict[str, int]
    content_hash: str


class Submission(NamedTuple):
    """Predictions of a test set."""

    text: str
    """Content of their file."""

    rows: int


@dataclass(eq=False)
class TaskRows:
    """Training rows and dev sets of a task, from files under `data_dir` or from the hub.

    They are read, hashed and tokenized once, at the first use. Rows have the columns input_ids, attention_mask and
    token_type_ids (if the model has them), label (int, or float for a regression), index (the row's number in its file)
    and length (tokens).

    Another kind of task is a subclass (`bitkd.data.task_kinds`), with `read_hub`, `encode` and metrics of its own. If a row of
    the file may become several, they have the column `row`, its number there.

    Raises InputError if the task's definition is wrong; the first use raises it if a file or a row cannot be read.
    """

    task: TaskSpec
    tokenizer: Any
    data_dir: Path | str | None = None
    """Folder of the task's files; None reads the hub."""

    max_length: int = 128
    """Tokens of a row at most; longer ones are truncated, and counted in a warning."""

    cache_dir: Path | str | None = None
    """Folder of the tokenized rows, as memory-mapped Arrow files; None keeps the rows in memory."""

    selection: Selection = "dev"
    """What a fit validates on: `dev`, the dev sets, as published; or `holdout`, a stratified tenth of the training rows,
    which is then left out of training. `Trainer.validate` uses the dev sets too."""

    selection_seed: int = 0
    """Seed that chooses the rows held out."""

    def __post_init__(self) -> None:
        check_task(self.task)
        check_metrics(self.task)
        check_choices(self)

    @property
    def train(self) -> Dataset:
        """The training rows, without those held out."""
        return self._tokenized.train

    @property
    def dev(self) -> dict[str, Dataset]:
        """The dev sets by name; `holdout` is the first one, if rows are held out."""
        return self._tokenized.dev

    @property
    def truncated(self) -> dict[str, int]:
        """Rows of each split that were longer than max_length."""
        return self._tokenized.truncated

    @property
    def content_hash(self) -> str:
        """SHA-256 of the content of all rows, as they are in the files or on the hub."""
        return self._tokenized.content_hash

    @property
    def num_rows(self) -> dict[str, int]:
        """Rows of `train` and of each dev set."""
        return {"train": len(self.train), **{name: len(rows) for name, rows in self.dev.items()}}

    @property
    def dev_names(self) -> list[str]:
        """Names of the dev sets; the first one selects checkpoints."""
        return [*([HOLDOUT] if self.selection == HOLDOUT else []), *self._sources("dev")]

    @property
    def fit_dev_names(self) -> list[str]:
        """The dev sets that a fit validates on; the others are for the end of a stage."""
        return [HOLDOUT] if self.selection == HOLDOUT else self.dev_names

    def fingerprint(self) -> str:
        """Hash of the rows' content and of how the task reads it; names and paths of files do not count."""
        return task_fingerprint(
            self.task, self.content_hash, self.data_dir is not None, self.dev_names, self.selection_seed
        )

    @property
    def encoding_settings(self) -> list[Any]:
        """What the tokens depend on besides rows, tokenizer and max_length."""
        return []

    @property
    def truncation(self) -> str:
        """Which rows are truncated, for messages."""
        return f"rows longer than data.max_length={self.max_length} tokens are truncated"

    def metrics(self) -> dict[str, MetricCollection | Metric]:
        """The task's metrics of each dev set, by its name."""
        return {name: build_metrics(self.task) for name in self.dev_names}

    def raw_rows(self, name: str) -> Rows:
        """The rows of a dev set, read anew; those that are held out are among all training rows."""
        return self._read("train" if name == HOLDOUT else name)

    def metrics_on(self, rows: Rows) -> MetricCollection | Metric:
        """The task's metrics of some rows, as the kind's `read` gave them."""
        return build_metrics(self.task)

    def train_texts(self) -> Rows:
        """The texts and labels of the training rows (without those held out), read anew."""
        rows = self._read("train")
        if self.selection != HOLDOUT:
            return rows
        _, kept = self._divide(self.groups(rows))
        return {name: [column[i] for i in kept] for name, column in rows.items()}

    def source_hash(self) -> str:
        """Hash of the training rows (without those held out) and of the labels' order."""
        return self._source_hash

    @cached_property
    def _source_hash(self) -> str:
        content = json.dumps([self.task.labels, self.train_texts()], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def test_rows(self, name: str) -> Dataset:
        """A test set's rows, tokenized, in the order of its file, without labels. Raises InputError if there is no such set."""
        check_test_set(self.task, name, local=self.data_dir is not None)
        return self._tokenize(self._read(name), name).remove_columns("truncated")

    def tokenize(self, rows: Rows, name: str) -> Dataset:
        """Rows that do not come from the task's own files, tokenized, in their order. Truncated ones are counted in a warning.

        name: of the file of tokenized rows in `cache_dir`.
        """
        found = self._tokenize(rows, name)
        if count := sum(found["truncated"][:]):
            log.warning("%s: %d", self.truncation, count)
        return found.remove_columns("truncated")

    def submission(self, name: str, answers: Iterable[tuple[Tensor, Tensor]]) -> Submission:
        """The predictions for a test set, in the form that labels have in the task's files.

        name: of the set.  answers: numbers of tokenized rows and the model's logits for them, batch by batch.
        """
        index, logits = (torch.cat(column) for column in zip(*answers))
        logits = logits[index.argsort()]
        labels = self.task.labels
        if labels is None:
            found = [f"{score:.3f}" for score in logits[:, 0].tolist()]
        else:
            places = logits.argmax(dim=1).tolist()
            found = [labels[place] if self.task.files.labels_as == "names" else str(place) for place in places]
        lines = ["index\tprediction", *(f"{number}\t{prediction}" for number, prediction in enumerate(found))]
        return Submission("\n".join(lines) + "\n", len(found))

    def read_hub(self, rows: Dataset, split: str, labelled: bool) -> Rows:
        """The rows of a split of a dataset on the hub.  labelled: whether they have labels."""
        return self._hub_rows(rows, split, labelled)

    def encode(self, rows: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        """The columns of tokenized rows. `index` is added where it is none of them: the number of the tokenized row.

        rows: a part of what the kind's `read` gave.  numbers: of these rows in their file.
        """
        columns = ["text_a", "text_b"] if "text_b" in rows else ["text_a"]
        encoded = encode_texts(self.tokenizer, [rows[column] for column in columns], self.max_length)
        return {**encoded, **({"label": rows["label"]} if "label" in rows else {}), "index": numbers}

    def groups(self, rows: Rows) -> list[Any]:
        """A number for each row: a tenth of the rows of each (rounded) number is held out."""
        return rows["label"]

    @cached_property
    def _tokenized(self) -> _Tokenized:
        splits = {name: self._read(name) for name in ("train", *self._sources("dev"))}
        content_hash = self._hash_of(splits)
        tokenized = {name: self._tokenize(rows, name) for name, rows in splits.items()}
        truncated = {name: sum(rows["truncated"][:]) for name, rows in tokenized.items()}
        if found := ", ".join(f"{count} of {name}" for name, count in truncated.items() if count):
            log.warning("%s: %s: %s", self.task.name, self.truncation, found)
        self.note(tokenized["train"])
        dev = {name: rows.remove_columns("truncated") for name, rows in tokenized.items()}
        train = dev.pop("train")
        if self.selection == HOLDOUT:
            held_out, kept = self._divide(self.groups(splits["train"]))
            dev = {HOLDOUT: _of_rows(train, held_out), **dev}
            train = _of_rows(train, kept)
        return _Tokenized(train, dev, truncated, content_hash)

    def note(self, rows: Dataset) -> None:
        """Warn of what may be wrong with the training rows: if the tokenizer does not know many words of the first ones."""
        tokens = list(itertools.chain.from_iterable(rows[:SAMPLED_ROWS]["input_ids"]))
        unknown = self.tokenizer.unk_token_id
        share = tokens.count(unknown) / len(tokens) if tokens and unknown is not None else 0
        if share > UNKNOWN_SHARE:
            log.warning(
                "%s: %.0f%% of the tokens of its rows are %s, which the tokenizer makes of what it does not know; is the model "
                "one for this language, and for upper or lower case?",
                self.task.name,
                100 * share,
                self.tokenizer.unk_token,
            )

    def _divide(self, labels: list[Any]) -> tuple[list[int], list[int]]:
        """Numbers of the held-out rows, and of the others. The seed chooses a tenth of the rows of each label; for a
        regression, of each rounded label.
        """
        random = np.random.default_rng(self.selection_seed)
        groups = np.round(np.asarray(labels, dtype=float))
        held_out: list[int] = []
        for group in np.unique(groups):
            rows = np.flatnonzero(groups == group)
            held_out += random.choice(rows, round(len(rows) * HOLDOUT_SHARE), replace=False).tolist()
        if not held_out:
            raise InputError(
                f"data.selection=holdout: {len(labels)} training rows are too few for a tenth of each label"
            )
        return sorted(held_out), sorted(set(range(len(labels))) - set(held_out))

    def _sources(self, kind: str) -> dict[str, str]:
        """Name of each dev or test set -> its file or split."""
        return getattr(self.task.files if self.data_dir else self.task.hub, kind)

    def _read(self, split: str) -> Rows:
        tests = self._sources("test")
        if self.data_dir is not None:
            files = {"train": self.task.files.train, **self.task.files.dev, **tests}
            file = find_file(self.task, files[split], self.data_dir)
            found: Rows = self.task.of_kind.read(self.task, file, labelled=split not in tests)
            return found
        hub = self.task.hub
        if not hub.path:
            raise InputError(f"task {self.task.name} is not on the hub; give its files with data.dir=FOLDER")
        found = load_hub_dataset(hub.path, hub.name)
        name = {"train": hub.train, **hub.dev, **tests}[split]
        if name not in found:
            raise InputError(f"{hub.path} has no split {name}; it has {', '.join(found)}")
        return self.read_hub(found[name], name, labelled=split not in tests)

    def _hash_of(self, splits: dict[str, Rows]) -> str:
        if self.data_dir is not None:
            names = [self.task.files.train, *self.task.files.dev.values()]
            return content_hash([find_file(self.task, name, self.data_dir) for name in names])
        return hashlib.sha256(json.dumps(splits, sort_keys=True).encode()).hexdigest()

    def _hub_rows(self, rows: Dataset, split: str, labelled: bool = True) -> Rows:
        hub, task = self.task.hub, self.task
        texts = hub.text or task.text
        source, records = self.hub_records(rows, split, [*texts, *([hub.label] if labelled else [])])
        names = getattr(rows.features[hub.label], "names", None) if labelled else None
        read_label = (lambda value, place: hub_label(task, value, names, place)) if labelled else None
        return collect_rows(records, texts, read_label, source, skip=task.files.skip_malformed and labelled)

    def hub_records(self, rows: Dataset, split: str, columns: list[str]) -> tuple[str, Iterator[Record]]:
        """What to call a split of a dataset on the hub in messages, and its rows, reduced to `columns`."""
        missing = [column for column in columns if column not in rows.column_names]
        if missing:
            raise InputError(
                f"{self.task.hub.path} {split}: column {missing[0]} is missing; it has {rows.column_names}"
            )
        source = f"{self.task.hub.path} {split}"
        try:
            values = [rows[column][:] for column in columns]
        except UnicodeDecodeError as error:
            raise InputError(f"{source}: a text is not UTF-8 ({error}); use another dataset, or files") from error
        return source, ((f"{source}, row {number}", list(fields)) for number, fields in enumerate(zip(*values)))

    def _tokenize(self, rows: Rows, split: str) -> Dataset:
        # The name depends on everything that changes the tokens, so an existing file is right. `map` writes a temporary
        # file and renames it: several ranks may write at once.
        identity = [self.max_length, self.tokenizer.model_input_names, tokenizer_state(self.tokenizer), rows]
        identity += self.encoding_settings
        key = datasets.fingerprint.Hasher.hash(identity)
        file, folder = None, Path()
        if self.cache_dir is not None:
            folder = Path(self.cache_dir).expanduser()
            with writable(folder):
                folder.mkdir(parents=True, exist_ok=True)
            file = str(folder / f"{self.task.name}-{split}-{key}.arrow")
        with writable(folder), without_progress_bars():
            found = Dataset.from_dict(rows).map(
                self.encode,
                batched=True,
                with_indices=True,
                remove_columns=list(rows),
                cache_file_name=file,
                new_fingerprint=key,
            )
            if "index" in found.column_names:
                return found
            return found.add_column("index", np.arange(len(found)), new_fingerprint=f"{key}-numbered")


def _of_rows(rows: Dataset, numbers: list[int]) -> Dataset:
    """The tokenized rows that come from the rows of these numbers."""
    if "row" not in rows.column_names:
        return rows.select(numbers)
    return rows.select(np.flatnonzero(np.isin(rows.with_format("numpy")["row"][:], numbers)))


def hub_label(task: TaskSpec, value: Any, names: list[str] | None, place: str) -> int | float:
    """The label of a row on the hub. Classes are matched by name, which is `value` itself or `names[value]`.

    place: of the row, for messages.  Raises Malformed if the task has no such label.
    """
    check_single_label(value, place)
    if task.labels is None:
        if isinstance(value, int | float) and math.isfinite(value):
            return number_label(task, float(value), place)
        raise Malformed(f"{place}: label {shorten(value)} is not a finite number")
    names = names or task.labels
    name = names[value] if isinstance(value, int) and 0 <= value < len(names) else value
    if name not in task.labels:
        raise Malformed(
            f"{place}: label {shorten(value)} is outside the task's set {shorten(task.labels)} (its names: {shorten(names)})"
        )
    return task.labels.index(name)
