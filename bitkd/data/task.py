"""The task's rows, tokenized once and kept as Arrow."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset
from lightning.pytorch.utilities import rank_zero_info

from bitkd.data.base import TokenizedDataModule
from bitkd.data.files import Rows, content_hash, find_file, read_rows
from bitkd.data.hub import load_hub_dataset
from bitkd.data.tasks import TaskSpec, check_task
from bitkd.errors import InputError


class TaskDataModule(TokenizedDataModule):
    """Training rows and dev sets of a task, from files under `data_dir` or from the hub.

    cache_dir: folder where tokenized rows are kept as Arrow and memory-mapped from; null keeps them in memory.
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
    ) -> None:
        super().__init__(
            tokenizer, max_length, batch_size, total_batches, accumulate, seed, eval_batch_size, num_workers
        )
        check_task(task)
        self.task = task
        self.data_dir = data_dir
        self.cache_dir = cache_dir
        self.truncated = 0
        self._hash = ""

    def setup(self, stage: str) -> None:
        if self.train_rows is not None:
            return
        splits = self._from_files() if self.data_dir else self._from_hub()
        tokenized = {name: self._tokenize(rows, name) for name, rows in splits.items()}
        self.train_rows = tokenized.pop("train")
        self.dev_rows = tokenized
        if self.truncated:
            rank_zero_info(
                f"{self.task.name}: {self.truncated} rows are longer than data.max_length={self.max_length} tokens and are cut"
            )

    def fingerprint(self) -> str:
        """Hash of the rows' content and of how the task reads it; names and paths of files do not count."""
        self.setup("fit")
        task, files, hub = self.task, self.task.files, self.task.hub
        source = (
            [files.header, files.text, files.label, files.labels_as]
            if self.data_dir
            else [hub.path, hub.text, hub.label]
        )
        meaning = [task.text, task.labels, task.metric, task.metrics, source, list(self.dev_rows)]
        return hashlib.sha256(json.dumps([self._hash, meaning]).encode()).hexdigest()

    def share(self, other: "TaskDataModule") -> "TaskDataModule":
        """Use the rows that `other` has loaded already."""
        self.train_rows, self.dev_rows, self._hash = other.train_rows, other.dev_rows, other._hash
        return self

    def _from_files(self) -> dict[str, Rows]:
        assert self.data_dir is not None
        names = {"train": self.task.files.train, **self.task.files.dev}
        files = {split: find_file(self.task, name, self.data_dir) for split, name in names.items()}
        self._hash = content_hash(list(files.values()))
        return {split: read_rows(self.task, file) for split, file in files.items()}

    def _from_hub(self) -> dict[str, Rows]:
        hub = self.task.hub
        if not hub.path:
            raise InputError(f"task {self.task.name} is not on the hub; give its files with data.dir=FOLDER")
        found = load_hub_dataset(hub.path, hub.name)
        splits = {}
        for split, name in {"train": hub.train, **hub.dev}.items():
            if name not in found:
                raise InputError(f"{hub.path} has no split {name}; it has {', '.join(found)}")
            splits[split] = self._hub_rows(found[name], name)
        self._hash = hashlib.sha256(json.dumps(splits, sort_keys=True).encode()).hexdigest()
        return splits

    def _hub_rows(self, rows: Dataset, split: str) -> Rows:
        hub, task = self.task.hub, self.task
        columns = [*(hub.text or task.text), hub.label]
        missing = [column for column in columns if column not in rows.column_names]
        if missing:
            raise InputError(f"{hub.path} {split}: column {missing[0]} is missing; it has {rows.column_names}")
        labels: list[Any] = rows[hub.label][:]
        if not labels:
            raise InputError(f"{hub.path} {split} has no rows; a split must not be empty")
        if task.labels is None:
            for number, label in enumerate(labels):
                if not isinstance(label, int | float) or not math.isfinite(label):
                    raise InputError(f"{hub.path} {split}, row {number}: label {label!r} is not a finite number")
            labels = [float(label) for label in labels]
        else:
            names = getattr(rows.features[hub.label], "names", None) or task.labels
            named = {label: _name_of(label, names) for label in set(labels)}
            outside = [label for label, name in named.items() if name not in task.labels]
            if outside:
                raise InputError(
                    f"{hub.path} {split}: label {outside[0]!r} is outside the task's set {task.labels} (its names: {names})"
                )
            places = {label: task.labels.index(str(name)) for label, name in named.items()}
            labels = [places[label] for label in labels]
        texts = zip(("text_a", "text_b"), (rows[column][:] for column in columns[:-1]))
        return dict(texts) | {"label": labels}

    def _tokenize(self, rows: Rows, split: str) -> Dataset:
        columns = ["text_a", "text_b"] if "text_b" in rows else ["text_a"]

        def encode(batch: dict[str, list], indices: list[int]) -> dict[str, list]:
            texts = [batch[column] for column in columns]
            encoded = dict(self.tokenizer(*texts, truncation=False, verbose=False))
            truncated = [len(ids) > self.max_length for ids in encoded["input_ids"]]
            for place in [place for place, long in enumerate(truncated) if long]:
                cut = self.tokenizer(*(column[place] for column in texts), truncation=True, max_length=self.max_length)
                for name in encoded:
                    encoded[name][place] = cut[name]
            lengths = [len(ids) for ids in encoded["input_ids"]]
            return {**encoded, "length": lengths, "truncated": truncated, "index": indices}

        # Everything that changes the tokens is in the name, so a file that is there is right. It is written beside
        # its place and renamed, so that ranks may write it at once.
        identity = [self.max_length, self.tokenizer.model_input_names, _tokenizer_state(self.tokenizer), rows]
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
        self.truncated += sum(tokenized["truncated"][:])
        return tokenized.remove_columns("truncated")


def _name_of(label: Any, names: list[str]) -> str | None:
    """The name of a hub label, which is a name itself or a number that counts `names`; null for any other."""
    if isinstance(label, str):
        return label
    return names[label] if isinstance(label, int) and 0 <= label < len(names) else None


def _tokenizer_state(tokenizer: Any) -> str:
    """All that decides a tokenizer's tokens, except padding and truncation, which a call may leave behind in it."""
    if not tokenizer.is_fast:
        return str((type(tokenizer).__name__, tokenizer.init_kwargs, sorted(tokenizer.get_vocab().items())))
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    return json.dumps(state | {"padding": None, "truncation": None}, sort_keys=True)


datasets.disable_progress_bars()
