"""The sources of a run: pre-trained model, tokenizer, task rows, corpus, augmented rows.

Everything is loaded at its first use. What planning needs (the methods that return plain data) is cached. Only its
computation imports torch, transformers and datasets, so a plan from the cache imports none of them.
"""

from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitkd.config.schema import Config, cache_root
from bitkd.data.augment.checks import check_augmented
from bitkd.data.batches import LoaderSpec
from bitkd.data.documents import Documents, FileDocuments
from bitkd.data.hub import (
    load_tokenizer,
    make_token_types,
    resolve_pretrained,
    sample_rows,
    token_difference,
    tokenizer_size,
    tokenizer_state,
)
from bitkd.data.tasks import task_fingerprint
from bitkd.errors import InputError
from bitkd.files import checksum, digest
from bitkd.models.spec import Architecture, Source
from bitkd.sources.cache import FactCache
from bitkd.sources.facts import ModelInfo, RowsInfo, TokenizerInfo, by_folder, folder_hash
from bitkd.sources.locations import locate, make_documents
from bitkd.store.artifacts import Store, read_artifact

if TYPE_CHECKING:
    from bitkd.data.corpus_rows import CorpusRows, StreamRows
    from bitkd.data.modules import CorpusDataModule, TaskDataModule
    from bitkd.data.stream import StreamDataModule
    from bitkd.data.task_rows import TaskRows


class Sources:
    """The sources that a configuration names. The first use of a source raises InputError if something is wrong with
    it.

    config: the run's configuration, with folders in place of `demo`.
    model: folder of the pre-trained BERT.
    """

    def __init__(self, config: Config, model: Path, cache: FactCache) -> None:
        self.config = config
        self.model = model
        self.cache = cache

    # Models and tokenizers

    @by_folder
    def model_info(self, folder: Path) -> ModelInfo:
        from bitkd.models.artifact import is_artifact, read_model_config
        from bitkd.models.probe import read_limits

        config = read_model_config(folder)
        limits = read_limits(config)
        return ModelInfo(is_artifact(config), limits.positions, limits.token_types, config.vocab_size)

    @by_folder
    def architecture(self, folder: Path) -> Architecture:
        """What the model in a folder can be made into. Raises InputError if it cannot be distilled and quantized."""
        from bitkd.models.artifact import read_model_config
        from bitkd.models.probe import try_architecture

        return try_architecture(read_model_config(folder))

    @by_folder
    def shape_of(self, folder: Path) -> Source:
        """The shape of the model in a folder."""
        from bitkd.models.artifact import read_model_config
        from bitkd.models.encoder import describe_source

        return describe_source(read_model_config(folder))

    @by_folder
    def labels_of(self, folder: Path, kind: str) -> list[str]:
        """Label names of the model in a folder. Raises InputError if it has no trained head for this kind of task."""
        from bitkd.models.artifact import label_names, load_classifier
        from bitkd.models.heads import HEADS

        return label_names(load_classifier(folder, HEADS[kind]).config)

    @by_folder
    def check_encoder(self, folder: Path) -> None:
        """Raise InputError if weights of the encoder in a folder are missing or damaged."""
        from bitkd.models.artifact import load_encoder

        load_encoder(folder)

    @by_folder
    def check_embeddings(self, folder: Path) -> None:
        """Raise InputError if weights of the model in a folder are damaged, or its word embeddings missing."""
        from bitkd.data.augment.candidates import load_embeddings

        load_embeddings(folder)

    @by_folder
    def check_masked_lm(self, folder: Path) -> None:
        """Raise InputError if the model in a folder has no trained masked-LM head."""
        from bitkd.data.augment.candidates import load_masked_lm

        load_masked_lm(folder)

    @by_folder
    def hash_of(self, folder: Path) -> str:
        """Hash of a model's weights, configuration and tokenizer, whatever its path."""
        return folder_hash(folder)

    @by_folder
    def tokenizer_info(self, folder: Path) -> TokenizerInfo:
        tokenizer = self.tokenizer if folder == self.model else load_tokenizer(folder)
        return TokenizerInfo(digest(tokenizer_state(tokenizer)), tokenizer_size(tokenizer), tokenizer.model_max_length)

    def token_difference(self, folder: Path) -> str | None:
        """How the tokens that the tokenizer in a folder makes of the task's rows differ from those of the run's tokenizer;
        None if they do not.
        """
        settings, files = self._task_files
        settings = [*settings, str(folder), self.tokenizer_info(self.model).hash]

        def compute() -> str | None:
            texts = self.task_rows.train_texts()
            rows = list(zip(*(texts[name] for name in ("text_a", "text_b") if name in texts)))
            return token_difference(load_tokenizer(folder), self.tokenizer, sample_rows(rows))

        return self.cache.get("tokens", settings, None if files is None else [*files, *folder.glob("*")], compute)

    @cached_property
    def tokenizer(self) -> Any:
        """The pre-trained model's tokenizer. It makes token types if that model or a given teacher reads them."""
        tokenizer = load_tokenizer(self.model)
        given = [stage.checkpoint for stage in self.config.stages.values() if stage.checkpoint]
        teachers = [resolve_pretrained(name, setting="checkpoint=") for name in given]
        if any(self.model_info(folder).token_types > 1 for folder in teachers):
            make_token_types(tokenizer)
        return tokenizer

    @cached_property
    def augmentation_model(self) -> Path:
        """Folder of the model that augmentation takes its candidates from."""
        name = self.config.task.augmentation.model
        return resolve_pretrained(name, setting="task.augmentation.model=") if name else self.model

    def checksum_of(self, file: Path) -> str:
        """SHA-256 of a file's content."""
        return self.cache.get("checksum", [], [file], lambda: checksum(file))

    # The task's rows

    @cached_property
    def task_rows(self) -> "TaskRows":
        """The task's rows, read and tokenized."""
        data, folder = self.config.data, cache_root(self.config)
        rows: TaskRows = self.config.task.of_kind.rows_class(
            task=self.config.task,
            tokenizer=self.tokenizer,
            data_dir=data.dir,
            max_length=data.max_length,
            cache_dir=str(folder),
            selection=data.selection,
            selection_seed=data.selection_seed,
        )
        return rows

    def task_module(self, loader: LoaderSpec, augmented: Path | None = None) -> "TaskDataModule":
        """A data module on the task.  augmented: folder of the rows to train on instead of the task's own."""
        from bitkd.data.modules import TaskDataModule

        return TaskDataModule(self.task_rows, loader, augmented)

    @cached_property
    def task(self) -> RowsInfo:
        settings, files = self._task_files
        # Both change the number of rows where a row becomes several windows, and everywhere what is reported of the tokens
        # (truncated rows, unknown words).
        settings = [*settings, self.config.data.max_length, self.tokenizer_info(self.model).hash]

        def compute() -> dict[str, Any]:
            return {"hash": self.task_rows.content_hash, "rows": self.task_rows.num_rows}

        return RowsInfo(**self.cache.get("task", settings, files, compute))

    @cached_property
    def task_fingerprint(self) -> str:
        """Hash of the task's rows and of how it reads them."""
        data, rows = self.config.data, self.task
        dev_names = [name for name in rows.rows if name != "train"]
        return task_fingerprint(self.config.task, rows.hash, data.dir is not None, dev_names, data.selection_seed)

    @cached_property
    def training_rows_hash(self) -> str:
        """Hash of the rows that augmentation starts from."""
        settings, files = self._task_files
        return self.cache.get("training", settings, files, lambda: self.task_rows.source_hash())

    @cached_property
    def _task_files(self) -> tuple[list[Any], list[Path] | None]:
        """All settings that the task's rows depend on, and the files that they are read from (None for the hub)."""
        task, data = self.config.task, self.config.data
        parts = [task.name, task.text, task.labels, asdict(task.files), asdict(task.hub)]
        parts += [task.kind, asdict(task.answers), asdict(task.windows), asdict(task.similarity)]
        settings = [*parts, data.dir, data.selection, data.selection_seed]
        if data.dir is None:
            return settings, None
        root = Path(data.dir).expanduser()
        folders = [root, root / task.files.folder]  # the message for a missing file lists their content
        names = [task.files.train, *task.files.dev.values()]
        return settings, [*folders, *(folder / name for folder in folders for name in names)]

    @cached_property
    def given_rows(self) -> Path:
        """Folder of the augmented rows that were made before. Raises InputError if they do not fit this run."""
        folder = Path(self.config.task.augmentation.path or "").expanduser().resolve()
        record = read_artifact(folder).stage.augmented
        if record is None:
            raise InputError(
                f"task.augmentation.path={folder} holds no augmented rows; name a folder that `bitkd augment` made"
            )
        if damage := self._find_damage(folder):
            raise InputError(f"task.augmentation.path: {damage}; augment again")
        tokenizer = self.tokenizer_info(self.model).hash
        length = self.config.data.max_length
        check_augmented(folder, record, self.config.task.name, self.training_rows_hash, length, tokenizer)
        return folder

    @by_folder
    def _find_damage(self, folder: Path) -> str | None:
        return Store(folder.parent).find_damage(folder.name)

    # The corpus

    @cached_property
    def documents(self) -> Documents:
        return make_documents(self.config)

    @cached_property
    def corpus_rows(self) -> "CorpusRows":
        """The corpus, packed as a whole."""
        from bitkd.data.corpus_rows import CorpusRows

        data = self.config.data
        return CorpusRows(self.documents, self.tokenizer, data.max_length, data.segments, data.masking)

    @cached_property
    def stream_rows(self) -> "StreamRows":
        """The corpus as a stream."""
        from bitkd.data.corpus_rows import StreamRows

        data = self.config.data
        return StreamRows(self.documents, self.tokenizer, data.max_length, data.segments, data.masking)

    def corpus_module(self, loader: LoaderSpec) -> "CorpusDataModule | StreamDataModule":
        """A data module on the corpus."""
        from bitkd.data.modules import CorpusDataModule
        from bitkd.data.stream import StreamDataModule

        if self.config.data.streaming:
            return StreamDataModule(self.stream_rows, loader)
        return CorpusDataModule(self.corpus_rows, loader)

    @cached_property
    def corpus(self) -> RowsInfo:
        data = self.config.data
        source = [data.corpus, asdict(data.hub_corpus), data.streaming]
        tokenizer = self.tokenizer_info(self.model).hash
        settings = [*source, data.max_length, data.segments, data.masking, tokenizer]
        files = self.documents.files if isinstance(self.documents, FileDocuments) else None

        def compute() -> dict[str, Any]:
            rows = self.stream_rows if data.streaming else self.corpus_rows
            return {"hash": rows.fingerprint(), "rows": rows.num_rows}

        return RowsInfo(**self.cache.get("corpus", settings, files, compute))


def open_sources(config: Config, cache: FactCache) -> Sources:
    """The sources of `config`; see `locate`. Raises InputError if one is missing or the hub cannot be reached."""
    return Sources(*locate(config), cache)
