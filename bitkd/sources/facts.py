"""What a plan needs to know of the sources of a run. It is kept, so that planning again loads none of them."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitkd.config.schema import Config, store_root
from bitkd.data.augment.checks import check_augmented
from bitkd.data.documents import FileDocuments
from bitkd.data.hub import resolve_pretrained
from bitkd.data.tasks import check_metrics, check_task, task_fingerprint
from bitkd.errors import InputError
from bitkd.files import checksum, digest
from bitkd.models.spec import StudentSpec
from bitkd.sources.cache import Memo
from bitkd.sources.locations import locate, make_documents
from bitkd.store.artifacts import Store, read_artifact

if TYPE_CHECKING:
    from bitkd.sources.sources import Sources

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


@dataclass(frozen=True)
class ModelFacts:
    """Of a model's configuration.  artifact: whether it is bitkd's.  positions: tokens that it reads at most."""

    artifact: bool
    positions: int
    vocabulary: int


@dataclass(frozen=True)
class TokenizerFacts:
    """Of a tokenizer.  hash: of its state.  size: of its vocabulary.  longest: tokens that it gives at most."""

    hash: str
    size: int
    longest: int


@dataclass(frozen=True)
class RowFacts:
    """Of a task's rows or a corpus.  hash: of the content.  rows: of each split; a stream's training rows are not counted."""

    hash: str
    rows: dict[str, int]

    def steps_per_epoch(self, batch_size: int) -> int:
        """Optimizer steps of one pass over the training rows."""
        return max(1, self.rows["train"] // batch_size)


@dataclass
class SourceFacts:
    """Facts of a run's sources, each found when it is asked for; InputError says what is wrong with a source.

    config: the run's configuration with `demo` replaced by the folders that it stands for.  model: folder of the
    pre-trained BERT.
    """

    config: Config
    model: Path
    memo: Memo

    @cached_property
    def loaded(self) -> "Sources":
        """The sources themselves."""
        # Here, not above: it loads torch, lightning, transformers and datasets, which takes seconds.
        from bitkd.sources.sources import Sources

        return Sources(self.config, self.model, store_root(self.config).parent / "cache")

    def model_of(self, folder: Path) -> ModelFacts:
        return ModelFacts(**self._of_folder("model", folder, lambda: self.loaded.look_at_model(folder)))

    def shape_of(self, folder: Path) -> tuple[StudentSpec, int]:
        """What the model in a folder is, and how many layers it has."""
        spec, layers = self._of_folder("shape", folder, lambda: self.loaded.look_at_shape(folder))
        return StudentSpec(**spec), layers

    def labels_of(self, folder: Path) -> list[str]:
        """Label names of the classifier in a folder; InputError where it has no trained head."""
        return self._of_folder("labels", folder, lambda: self.loaded.look_at_labels(folder))

    def check_masked_lm(self, folder: Path) -> None:
        """InputError where the model in a folder has no trained masked-LM head."""
        self._of_folder("masked_lm", folder, lambda: self.loaded.look_for_masked_lm(folder))

    def tokenizer_of(self, folder: Path) -> TokenizerFacts:
        return TokenizerFacts(**self._of_folder("tokenizer", folder, lambda: self.loaded.look_at_tokenizer(folder)))

    @cached_property
    def tokenizer(self) -> TokenizerFacts:
        return self.tokenizer_of(self.model)

    def reads_alike(self, folder: Path) -> bool:
        """Whether the tokenizer in a folder makes the same tokens as the run's."""
        return self._of_folder("tokens", folder, lambda: self.loaded.reads_alike(folder), [self.tokenizer.hash])

    def hash_of(self, folder: Path) -> str:
        """Hash of a model's weights, configuration and tokenizer, whatever its path and what else lies in its folder."""
        return self._of_folder("hash", folder, lambda: _folder_hash(folder))

    def _of_folder(self, name: str, folder: Path, look: Callable[[], Any], settings: Sequence[str] = ()) -> Any:
        return self.memo.fact(name, [str(folder), *settings], folder.glob("*"), look)

    def checksum_of(self, file: Path) -> str:
        """SHA-256 of a file's content."""
        return self.memo.fact("checksum", [], [file], lambda: checksum(file))

    @cached_property
    def task(self) -> RowFacts:
        check_task(self.config.task)
        check_metrics(self.config.task)
        settings, files = self._reading_of_rows
        return RowFacts(**self.memo.fact("task", settings, files, lambda: self.loaded.look_at_rows()))

    @cached_property
    def task_fingerprint(self) -> str:
        """Hash of the task's rows and of how it reads them."""
        data, rows = self.config.data, self.task
        dev_names = [name for name in rows.rows if name != "train"]
        return task_fingerprint(self.config.task, rows.hash, data.dir is not None, dev_names, data.selection_seed)

    @cached_property
    def training_rows_hash(self) -> str:
        """Hash of the rows that augmentation starts from."""
        settings, files = self._reading_of_rows
        return self.memo.fact("training", settings, files, lambda: self.loaded.task_data.source_hash())

    @cached_property
    def _reading_of_rows(self) -> tuple[list[Any], list[Path] | None]:
        """What decides how the task's rows are read, and the files that they are read from; null for the hub."""
        task, data = self.config.task, self.config.data
        parts = [task.name, task.text, task.labels, asdict(task.files), asdict(task.hub)]
        settings = [*parts, data.dir, data.selection, data.selection_seed]
        if data.dir is None:
            return settings, None
        root = Path(data.dir).expanduser()
        folders = [root, root / task.files.folder]  # they are looked through where a file is missing
        names = [task.files.train, *task.files.dev.values()]
        return settings, [*folders, *(folder / name for folder in folders for name in names)]

    @cached_property
    def corpus(self) -> RowFacts:
        data, documents = self.config.data, make_documents(self.config)
        source = [data.corpus, asdict(data.hub_corpus), data.streaming]
        settings = [*source, data.max_length, data.segments, data.masking, self.tokenizer.hash]
        files = documents.files if isinstance(documents, FileDocuments) else None
        return RowFacts(**self.memo.fact("corpus", settings, files, lambda: self.loaded.look_at_corpus()))

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
        if record.augmented is None:
            raise InputError(
                f"task.augmentation.path={folder} holds no augmented rows; name a folder that `bitkd augment` made"
            )
        if damage := self._of_folder("damage", folder, lambda: Store(folder.parent).find_damage(folder.name)):
            raise InputError(f"task.augmentation.path: {damage}; augment again")
        task, length = self.config.task.name, self.config.data.max_length
        check_augmented(folder, record.augmented, task, self.training_rows_hash, length, self.tokenizer.hash)
        return folder


def open_facts(config: Config, memo: Memo) -> SourceFacts:
    """Facts of the sources that `config` names."""
    return SourceFacts(*locate(config), memo)


def _folder_hash(folder: Path) -> str:
    weights = SAFETENSORS if any(folder.glob(SAFETENSORS[0])) else PICKLES
    files = sorted({file for pattern in (*weights, *OTHER_MODEL_FILES) for file in folder.glob(pattern)})
    return digest({file.name: checksum(file) for file in files})
