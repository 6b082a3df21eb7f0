"""The sources of a run themselves: pre-trained model, tokenizer, task rows, corpus. `facts` is what a plan asks of them."""

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bitkd.config.schema import Config, TrainSpec, store_root
from bitkd.data.augment.augmenter import load_shards
from bitkd.data.augment.candidates import load_masked_lm
from bitkd.data.corpus import CorpusDataModule, StreamDataModule
from bitkd.data.documents import Documents
from bitkd.data.hub import load_tokenizer, same_tokens, tokenizer_state
from bitkd.data.task import TaskDataModule
from bitkd.files import digest
from bitkd.models.artifact import is_artifact, label_names, load_classifier, read_model_config
from bitkd.models.encoder import read_spec
from bitkd.sources.locations import locate, make_documents, writable


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
    def task_data(self) -> TaskDataModule:
        """The task's rows, loaded and tokenized; for counts, hashes and validation."""
        module = self.task_module_alone()
        with writable(self.cache):
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
        return make_documents(self.config)

    def look_at_model(self, folder: Path) -> dict[str, Any]:
        """`ModelFacts`, as all that follows as plain data."""
        config = read_model_config(folder)
        return {
            "artifact": is_artifact(config),
            "positions": config.max_position_embeddings,
            "vocabulary": config.vocab_size,
        }

    def look_at_shape(self, folder: Path) -> tuple[dict[str, Any], int]:
        """StudentSpec and number of layers."""
        config = read_model_config(folder)
        return asdict(read_spec(config)), config.num_hidden_layers

    def look_at_labels(self, folder: Path) -> list[str]:
        """Label names of a classifier; InputError where it has no trained head."""
        return label_names(load_classifier(folder).config)

    def look_for_masked_lm(self, folder: Path) -> None:
        """InputError where the model has no trained masked-LM head."""
        load_masked_lm(folder)

    def look_at_tokenizer(self, folder: Path) -> dict[str, Any]:
        """`TokenizerFacts`."""
        tokenizer = self.tokenizer if folder == self.model else load_tokenizer(folder)
        return {
            "hash": digest(tokenizer_state(tokenizer)),
            "size": len(tokenizer),
            "longest": tokenizer.model_max_length,
        }

    def reads_alike(self, folder: Path) -> bool:
        """Whether the tokenizer in a folder makes the same tokens as the run's."""
        return same_tokens(load_tokenizer(folder), self.tokenizer)

    def look_at_rows(self) -> dict[str, Any]:
        """`RowFacts` of the task."""
        return {"hash": self.task_data.rows_hash, "rows": self.task_data.num_rows}

    def look_at_corpus(self) -> dict[str, Any]:
        """`RowFacts` of the corpus."""
        return {"hash": self.corpus_data.fingerprint(), "rows": self.corpus_data.num_rows}


def open_sources(config: Config) -> Sources:
    """Resolve `demo`, local paths and hub ids; InputError where one is missing or the hub cannot be reached."""
    return Sources(*locate(config), store_root(config).parent / "cache")
