"""The task's rows, tokenized once and kept as Arrow."""

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
    """Training rows and dev sets of a task, from files under `data_dir` or from the hub."""

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
    ) -> None:
        super().__init__(
            tokenizer, max_length, batch_size, total_batches, accumulate, seed, eval_batch_size, num_workers
        )
        check_task(task)
        self.task = task
        self.data_dir = data_dir
        self.truncated = 0
        self._hash = ""

    def setup(self, stage: str) -> None:
        if self.train_rows is not None:
            return
        splits = self._from_files() if self.data_dir else self._from_hub()
        tokenized = {name: self._tokenize(rows) for name, rows in splits.items()}
        self.train_rows = tokenized.pop("train")
        self.dev_rows = tokenized
        if self.truncated:
            rank_zero_info(
                f"{self.task.name}: {self.truncated} rows are longer than data.max_length={self.max_length} tokens and are cut"
            )

    def fingerprint(self) -> str:
        """Hash of the rows' content; the folder's path does not count."""
        self.setup("fit")
        return self._hash

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
        self._hash = datasets.fingerprint.Hasher.hash(
            [found[name]._fingerprint for name in (hub.train, *hub.dev.values())]
        )
        return splits

    def _hub_rows(self, rows: Dataset, split: str) -> Rows:
        hub, task = self.task.hub, self.task
        columns = [*(hub.text or task.text), hub.label]
        missing = [column for column in columns if column not in rows.column_names]
        if missing:
            raise InputError(f"{hub.path} {split}: column {missing[0]} is missing; it has {rows.column_names}")
        labels: list[Any] = rows[hub.label][:]
        if task.labels is not None:
            names = getattr(rows.features[hub.label], "names", None) or task.labels
            outside = [label for label in set(labels) if not 0 <= label < len(names) or names[label] not in task.labels]
            if outside:
                raise InputError(
                    f"{hub.path} {split}: label {outside[0]} is outside the task's set {task.labels} (its names: {names})"
                )
            labels = [task.labels.index(names[label]) for label in labels]
        texts = zip(("text_a", "text_b"), (rows[column][:] for column in columns[:-1]))
        return dict(texts) | {"label": labels}

    def _tokenize(self, rows: Rows) -> Dataset:
        columns = ["text_a", "text_b"] if "text_b" in rows else ["text_a"]

        def encode(batch: dict[str, list], indices: list[int]) -> dict[str, list]:
            texts = [batch[column] for column in columns]
            full = self.tokenizer(*texts, truncation=False, return_attention_mask=False, verbose=False)
            cut = self.tokenizer(*texts, truncation=True, max_length=self.max_length)
            return {
                **cut,
                "length": [len(ids) for ids in cut["input_ids"]],
                "truncated": [len(ids) > self.max_length for ids in full["input_ids"]],
                "index": indices,
            }

        tokenized = Dataset.from_dict(rows).map(encode, batched=True, with_indices=True, remove_columns=columns)
        self.truncated += sum(tokenized["truncated"])
        return tokenized.remove_columns("truncated")


datasets.disable_progress_bars()
