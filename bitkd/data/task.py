"""The task's rows, tokenized once and kept as Arrow."""

import hashlib
import json
import logging
import math
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset

from bitkd.data.base import TokenizedDataModule, encode_texts
from bitkd.data.files import Malformed, Rows, collect_rows, content_hash, find_file, read_rows
from bitkd.data.hub import load_hub_dataset, tokenizer_state
from bitkd.data.tasks import HOLDOUT, TaskSpec, check_metrics, check_task, task_fingerprint
from bitkd.errors import InputError

HOLDOUT_SHARE = 0.1

log = logging.getLogger(__name__)


class TaskDataModule(TokenizedDataModule):
    """Training rows and dev sets of a task, from files under `data_dir` or from the hub.

    cache_dir: folder where tokenized rows are kept as Arrow and memory-mapped from; null keeps them in memory.
    rows_hash: hash of the content of all rows, once they are read.
    selection: `dev` validates a fit on the dev sets, as published; `holdout` on a stratified tenth of the training
    rows, which is then left out of training; the dev sets are looked at by `validate` alone.
    """

    def __init__(
        self,
        task: TaskSpec,
        tokenizer: Any,
        data_dir: str | None = None,
        max_length: int = 128,
        batch_size: int = 32,
        total_batches: int = 1,
        accumulate: int = 1,
        seed: int = 0,
        eval_batch_size: int = 64,
        num_workers: int = 0,
        cache_dir: str | None = None,
        selection: str = "dev",
        selection_seed: int = 0,
    ) -> None:
        super().__init__(
            tokenizer, max_length, batch_size, total_batches, accumulate, seed, eval_batch_size, num_workers
        )
        check_task(task)
        check_metrics(task)
        if selection not in ("dev", HOLDOUT):
            raise InputError(f"data.selection={selection} is unknown; use dev or {HOLDOUT}")
        self.task = task
        self.data_dir = data_dir
        self.cache_dir = cache_dir
        self.selection = selection
        self.selection_seed = selection_seed
        self.truncated: dict[str, int] = {}
        self.rows_hash = ""
        self._source_hash: str | None = None

    def setup(self, stage: str) -> None:
        if self.train_rows is not None:
            return
        splits = {name: self._read(name) for name in ("train", *self._sources("dev"))}
        self.rows_hash = self._content_hash(splits)
        tokenized = {name: self._tokenize(rows, name) for name, rows in splits.items()}
        self.train_rows = tokenized.pop("train")
        self.dev_rows = tokenized
        if self.selection == HOLDOUT:
            held, kept = self._divide(splits["train"]["label"])
            self.dev_rows = {HOLDOUT: self.train_rows.select(held), **tokenized}
            self.train_rows = self.train_rows.select(kept)
        cut = ", ".join(f"{count} of {name}" for name, count in self.truncated.items() if count)
        if cut:
            log.warning(
                "%s: rows longer than data.max_length=%d tokens are cut: %s", self.task.name, self.max_length, cut
            )

    @property
    def fit_dev_names(self) -> list[str]:
        return [HOLDOUT] if self.selection == HOLDOUT else self.dev_names

    def fingerprint(self) -> str:
        """Hash of the rows' content and of how the task reads it; names and paths of files do not count."""
        self.setup("fit")
        return task_fingerprint(
            self.task, self.rows_hash, self.data_dir is not None, self.dev_names, self.selection_seed
        )

    def share(self, other: "TaskDataModule") -> "TaskDataModule":
        """Use the rows that `other` has loaded already."""
        self.train_rows, self.dev_rows, self.rows_hash = other.train_rows, other.dev_rows, other.rows_hash
        return self

    def train_texts(self) -> Rows:
        """The texts and labels of the training rows (without those held out), read anew."""
        rows = self._read("train")
        if self.selection != HOLDOUT:
            return rows
        _, kept = self._divide(rows["label"])
        return {name: [column[i] for i in kept] for name, column in rows.items()}

    def source_hash(self) -> str:
        """Hash of the training rows (without those held out) and of the labels' order."""
        if self._source_hash is None:
            content = json.dumps([self.task.labels, self.train_texts()], sort_keys=True)
            self._source_hash = hashlib.sha256(content.encode()).hexdigest()
        return self._source_hash

    def test_rows(self, name: str) -> Dataset:
        """A test set's rows, tokenized, in their order; InputError where the task has no such set."""
        sets = self._sources("test")
        if name not in sets:
            known = f"it has {', '.join(sets)}" if sets else "name one under task.files.test or task.hub.test"
            if name in ("train", *self._sources("dev")):
                known = f"{name} has labels: `bitkd evaluate` reads it"
            raise InputError(f"task {self.task.name} has no test set {name}; {known}")
        return self._tokenize(self._read(name), name)

    def _divide(self, labels: list[Any]) -> tuple[list[int], list[int]]:
        """Row numbers held out and kept: a tenth of every label's rows, chosen by the seed (regression: of every whole
        number's).
        """
        random = np.random.default_rng(self.selection_seed)
        groups = np.round(np.asarray(labels, dtype=float))
        held: list[int] = []
        for group in np.unique(groups):
            rows = np.flatnonzero(groups == group)
            held += random.choice(rows, round(len(rows) * HOLDOUT_SHARE), replace=False).tolist()
        if not held:
            raise InputError(
                f"data.selection=holdout: {len(labels)} training rows are too few for a tenth of each label"
            )
        return sorted(held), sorted(set(range(len(labels))) - set(held))

    def _sources(self, kind: str) -> dict[str, str]:
        """Name of each dev or test set -> its file or split."""
        return getattr(self.task.files if self.data_dir else self.task.hub, kind)

    def _read(self, split: str) -> Rows:
        tests = self._sources("test")
        if self.data_dir is not None:
            files = {"train": self.task.files.train, **self.task.files.dev, **tests}
            return read_rows(self.task, find_file(self.task, files[split], self.data_dir), labelled=split not in tests)
        hub = self.task.hub
        if not hub.path:
            raise InputError(f"task {self.task.name} is not on the hub; give its files with data.dir=FOLDER")
        found = load_hub_dataset(hub.path, hub.name)
        name = {"train": hub.train, **hub.dev, **tests}[split]
        if name not in found:
            raise InputError(f"{hub.path} has no split {name}; it has {', '.join(found)}")
        return self._hub_rows(found[name], name, labelled=split not in tests)

    def _content_hash(self, splits: dict[str, Rows]) -> str:
        if self.data_dir is not None:
            names = [self.task.files.train, *self.task.files.dev.values()]
            return content_hash([find_file(self.task, name, self.data_dir) for name in names])
        return hashlib.sha256(json.dumps(splits, sort_keys=True).encode()).hexdigest()

    def _hub_rows(self, rows: Dataset, split: str, labelled: bool = True) -> Rows:
        hub, task = self.task.hub, self.task
        texts = hub.text or task.text
        columns = [*texts, *([hub.label] if labelled else [])]
        missing = [column for column in columns if column not in rows.column_names]
        if missing:
            raise InputError(f"{hub.path} {split}: column {missing[0]} is missing; it has {rows.column_names}")
        names = getattr(rows.features[hub.label], "names", None) if labelled else None
        source = f"{hub.path} {split}"
        records = (
            (f"{source}, row {number}", list(fields))
            for number, fields in enumerate(zip(*(rows[column][:] for column in columns)))
        )
        read_label = (lambda value, place: _hub_label(task, value, names, place)) if labelled else None
        return collect_rows(records, texts, read_label, source, skip=task.files.skip_malformed and labelled)

    def _tokenize(self, rows: Rows, split: str) -> Dataset:
        columns = ["text_a", "text_b"] if "text_b" in rows else ["text_a"]

        def encode(batch: dict[str, list], indices: list[int]) -> dict[str, list]:
            texts = [batch[column] for column in columns]
            return {**encode_texts(self.tokenizer, texts, self.max_length), "index": indices}

        # Everything that changes the tokens is in the name, so a file that is there is right. It is written beside
        # its place and renamed, so that ranks may write it at once.
        identity = [self.max_length, self.tokenizer.model_input_names, tokenizer_state(self.tokenizer), rows]
        key = datasets.fingerprint.Hasher.hash(identity)
        file = None
        if self.cache_dir is not None:
            folder = Path(self.cache_dir).expanduser()
            folder.mkdir(parents=True, exist_ok=True)
            file = str(folder / f"{self.task.name}-{split}-{key}.arrow")
        tokenized = Dataset.from_dict(rows).map(
            encode,
            batched=True,
            with_indices=True,
            remove_columns=columns,
            cache_file_name=file,
            new_fingerprint=key,
        )
        self.truncated[split] = sum(tokenized["truncated"][:])
        return tokenized.remove_columns("truncated")


def _hub_label(task: TaskSpec, value: Any, names: list[str] | None, place: str) -> int | float:
    """A label by its name, which is the value itself or the one that a number counts among `names`; or a number."""
    if task.labels is None:
        if isinstance(value, int | float) and math.isfinite(value):
            return float(value)
        raise Malformed(f"{place}: label {value!r} is not a finite number")
    names = names or task.labels
    name = names[value] if isinstance(value, int) and 0 <= value < len(names) else value
    if name not in task.labels:
        raise Malformed(f"{place}: label {value!r} is outside the task's set {task.labels} (its names: {names})")
    return task.labels.index(name)


datasets.disable_progress_bars()
