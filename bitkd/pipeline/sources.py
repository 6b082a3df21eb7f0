"""What a run starts from, found and checked before any work: pre-trained model, tokenizer, task rows, corpus."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from bitkd.config.schema import DEMO, Config, TrainSpec
from bitkd.data.augment import load_shards
from bitkd.data.augmented import Augmented, check_augmented
from bitkd.data.corpus import CorpusDataModule, StreamDataModule
from bitkd.data.demo import ensure_demo
from bitkd.data.documents import Documents, FileDocuments, HubDocuments
from bitkd.data.hub import load_tokenizer, resolve_pretrained, tokenizer_state
from bitkd.data.task import TaskDataModule
from bitkd.errors import InputError
from bitkd.models.artifact import load_config
from bitkd.pipeline.graph import digest
from bitkd.store.artifacts import Store, checksum, read_artifact, store_root

SAFETENSORS = ("model*.safetensors", "model.safetensors.index.json")
PICKLES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
OTHER_MODEL_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
)


@dataclass
class Sources:
    """Sources of one run, each resolved once. `model`: folder of the pre-trained BERT. `config`: the run's
    configuration with `demo` replaced by the folders that it stands for.
    """

    config: Config
    model: Path
    cache: Path

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(str(self.model))

    @cached_property
    def model_config(self) -> PretrainedConfig:
        return load_config(self.model)

    @cached_property
    def model_hash(self) -> str:
        return folder_hash(self.model)

    @cached_property
    def tokenizer_hash(self) -> str:
        return digest(tokenizer_state(self.tokenizer))

    @cached_property
    def augmentation_model(self) -> Path:
        """Folder of the model that augmentation takes its candidates from."""
        name = self.config.task.augmentation.model
        return resolve_pretrained(name, setting="task.augmentation.model=") if name else self.model

    @cached_property
    def given_rows(self) -> Path:
        """Folder of the augmented rows that were made before; InputError where they do not fit this run."""
        folder = Path(self.config.task.augmentation.path or "").expanduser().resolve()
        record = read_artifact(folder).stage
        if "augmented" not in record:
            raise InputError(
                f"task.augmentation.path={folder} holds no augmented rows; name a folder that `bitkd augment` made"
            )
        if damage := Store(folder.parent).damage(folder.name):
            raise InputError(f"task.augmentation.path: {damage}; augment again")
        task, length = self.config.task.name, self.config.data.max_length
        facts = Augmented(**record["augmented"])
        check_augmented(folder, facts, task, self.task_data.source_hash(), length, self.tokenizer_hash)
        return folder

    @cached_property
    def task_data(self) -> TaskDataModule:
        """The task's rows, loaded and tokenized; for counts, hashes and validation."""
        module = self.task_module_alone()
        with _writable(self.cache):
            module.setup("fit")
        return module

    @cached_property
    def corpus_data(self) -> CorpusDataModule:
        """The corpus, packed."""
        module = self._make_corpus_module(TrainSpec(), total_batches=1, accumulate=1, seed=0)
        module.setup("fit")
        return module

    def task_module_alone(self) -> TaskDataModule:
        """A data module whose training rows and dev sets are not read."""
        return self._make_task_module(TrainSpec(), total_batches=1, accumulate=1, seed=0)

    def task_module(
        self, train: TrainSpec, total_batches: int, accumulate: int, seed: int, augmented: Path | None = None
    ) -> TaskDataModule:
        """A data module for one stage on the task. `augmented`: folder of the rows to train on instead."""
        module = self._make_task_module(train, total_batches, accumulate, seed).share(self.task_data)
        if augmented is not None:
            module.train_rows = load_shards(augmented)
        return module

    def corpus_module(self, train: TrainSpec, total_batches: int, accumulate: int, seed: int) -> CorpusDataModule:
        """A data module for General KD."""
        return self._make_corpus_module(train, total_batches, accumulate, seed).share(self.corpus_data)

    def _make_task_module(self, train: TrainSpec, total_batches: int, accumulate: int, seed: int) -> TaskDataModule:
        data = self.config.data
        return TaskDataModule(
            task=self.config.task,
            tokenizer=self.tokenizer,
            data_dir=data.dir,
            max_length=data.max_length,
            batch_size=train.batch_size,
            total_batches=total_batches,
            accumulate=accumulate,
            seed=seed,
            eval_batch_size=data.eval_batch_size,
            num_workers=data.num_workers,
            cache_dir=str(self.cache),
            selection=data.selection,
            selection_seed=data.selection_seed,
        )

    def _make_corpus_module(self, train: TrainSpec, total_batches: int, accumulate: int, seed: int) -> CorpusDataModule:
        data = self.config.data
        kind = StreamDataModule if data.streaming else CorpusDataModule
        return kind(
            documents=self.documents,
            tokenizer=self.tokenizer,
            max_length=data.max_length,
            batch_size=train.batch_size,
            total_batches=total_batches,
            accumulate=accumulate,
            seed=seed,
            eval_batch_size=data.eval_batch_size,
            num_workers=data.num_workers,
            segments=data.segments,
            masking=data.masking,
        )

    @cached_property
    def documents(self) -> Documents:
        """The corpus of General KD; InputError where there is none, or two."""
        data = self.config.data
        if bool(data.corpus) == bool(data.hub_corpus.path):
            what = "both data.corpus and data.hub_corpus.path are given" if data.corpus else "data.corpus is empty"
            raise InputError(
                f"General KD needs a text corpus and {what}; give text files or folders with data.corpus=[PATH,…], or a "
                "dataset on the hub with data.hub_corpus.path=ID"
            )
        if data.hub_corpus.path:
            return HubDocuments(data.hub_corpus, data.streaming)
        return FileDocuments(data.corpus)


def open_sources(config: Config) -> Sources:
    """Resolve `demo`, local paths and hub ids; InputError where one is missing or the hub cannot be reached."""
    store = store_root(config)
    data, model = config.data, config.model
    if DEMO in (data.dir, model.pretrained) or DEMO in data.corpus:
        with _writable(store.parent):
            demo = ensure_demo(store.parent / "demo")
        data = replace(
            data,
            dir=str(demo.data) if data.dir == DEMO else data.dir,
            corpus=[str(demo.corpus) if path == DEMO else path for path in data.corpus],
        )
        model = replace(model, pretrained=str(demo.model) if model.pretrained == DEMO else model.pretrained)
    folder = resolve_pretrained(model.pretrained)
    return Sources(replace(config, data=data, model=model), folder, store.parent / "cache")


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """Within this context a refused write means that the run's folder was badly chosen."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{folder} is not writable ({error.strerror or error}); choose another folder with run.dir= or run.store="
        ) from error


def folder_hash(folder: Path) -> str:
    """Hash of a model's weights, configuration and tokenizer, whatever its path and what else lies in its folder."""
    weights = SAFETENSORS if any(folder.glob(SAFETENSORS[0])) else PICKLES
    files = sorted({file for pattern in (*weights, *OTHER_MODEL_FILES) for file in folder.glob(pattern)})
    return digest({file.name: checksum(file) for file in files})
