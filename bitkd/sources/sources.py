"""The sources of a run themselves: pre-trained model, tokenizer, task rows, corpus. `facts` is what a plan asks of them."""

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bitkd.config.schema import Config, TrainSpec, store_root
from bitkd.data.augment.candidates import load_masked_lm
from bitkd.data.batches import LoaderSpec
from bitkd.data.corpus_rows import CorpusRows, StreamRows
from bitkd.data.documents import Documents
from bitkd.data.hub import load_tokenizer, same_tokens, tokenizer_state
from bitkd.data.modules import CorpusDataModule, TaskDataModule
from bitkd.data.stream import StreamDataModule
from bitkd.data.task_rows import TaskRows
from bitkd.files import digest
from bitkd.models.artifact import is_artifact, label_names, load_classifier, load_config
from bitkd.models.encoder import spec_of
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
    def task_data(self) -> TaskRows:
        """The task's rows, loaded and tokenized."""
        rows = self.task_rows_unread()
        with writable(self.cache):
            _ = rows.train
        return rows

    @cached_property
    def corpus_data(self) -> CorpusRows | StreamRows:
        """The corpus, packed."""
        data = self.config.data
        kind = StreamRows if data.streaming else CorpusRows
        return kind(self.documents, self.tokenizer, data.max_length, data.segments, data.masking)

    def task_rows_unread(self) -> TaskRows:
        """The task's rows before they are read."""
        data = self.config.data
        return TaskRows(
            self.config.task,
            self.tokenizer,
            data.dir,
            data.max_length,
            self.cache,
            data.selection,  # type: ignore[arg-type]
            data.selection_seed,
        )

    def task_module(
        self, train: TrainSpec, total_batches: int | None, accumulate: int, seed: int, augmented: Path | None = None
    ) -> TaskDataModule:
        """A data module for one stage on the task. `augmented`: folder of the rows to train on instead."""
        return TaskDataModule(self.task_data, self._loader(train, total_batches, accumulate, seed), augmented)

    def corpus_module(
        self, train: TrainSpec, total_batches: int | None, accumulate: int, seed: int
    ) -> CorpusDataModule | StreamDataModule:
        """A data module for General KD."""
        rows, loader = self.corpus_data, self._loader(train, total_batches, accumulate, seed)
        return StreamDataModule(rows, loader) if isinstance(rows, StreamRows) else CorpusDataModule(rows, loader)

    def _loader(self, train: TrainSpec, total_batches: int | None, accumulate: int, seed: int) -> LoaderSpec:
        data = self.config.data
        return LoaderSpec(train.batch_size, total_batches, accumulate, seed, data.eval_batch_size, data.num_workers)

    @cached_property
    def documents(self) -> Documents:
        return make_documents(self.config)

    def look_at_model(self, folder: Path) -> dict[str, Any]:
        """`ModelFacts`, as all that follows as plain data."""
        config = load_config(folder)
        return {
            "artifact": is_artifact(config),
            "positions": config.max_position_embeddings,
            "vocabulary": config.vocab_size,
        }

    def look_at_shape(self, folder: Path) -> tuple[dict[str, Any], int]:
        """StudentSpec and number of layers."""
        config = load_config(folder)
        return asdict(spec_of(config)), config.num_hidden_layers

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
        return {"hash": self.task_data.content_hash, "rows": self.task_data.num_rows}

    def look_at_corpus(self) -> dict[str, Any]:
        """`RowFacts` of the corpus."""
        return {"hash": self.corpus_data.fingerprint(), "rows": self.corpus_data.num_rows}


def open_sources(config: Config) -> Sources:
    """Resolve `demo`, local paths and hub ids; InputError where one is missing or the hub cannot be reached."""
    return Sources(*locate(config), store_root(config).parent / "cache")
