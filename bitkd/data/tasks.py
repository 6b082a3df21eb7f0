"""The definition of a task: its texts, its labels, its metrics, and where its rows come from (see conf/task)."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from bitkd.data.task_kinds import (
    KindOfTask,
    kind_of_task,
)

HOLDOUT = "holdout"
"""Name of the dev set of training rows that are held out for choosing checkpoints."""

SCORE_KEY = "score"
"""Key beside the dev sets in an artifact's metrics.json."""

Selection = Literal["dev", "holdout"]
"""Rows that choose checkpoints: the dev sets, or training rows that are held out."""

CandidateSource = Literal["auto", "masked_lm", "vectors"]
CandidatePrecision = Literal["32-true", "bf16-mixed"]
AugmentPrecision = Literal["auto", "32-true", "bf16-mixed"]


@dataclass
class FilesSpec:
    """A task's files on disk, in UTF-8. The suffix gives the format: .tsv (without quotes, as GLUE's), .csv, .jsonl, .json
    (lines, or one array) or .parquet; text formats may be compressed (.gz). A row has one label."""

    folder: str = ""
    """Folder under data.dir; the files may also be in data.dir itself."""

    train: str = "train.tsv"
    """File of the training rows."""

    dev: dict[str, str] = field(default_factory=dict)
    """Name of each dev set -> its file; the first one selects checkpoints."""

    test: dict[str, str] = field(default_factory=dict)
    """Name of each test set -> its file. Labels are not read; `bitkd predict` writes a submission for it."""

    header: list[str] | None = None
    """Column names of training and dev files without a header line; null reads the first line."""

    text: list[str] | None = None
    """Columns of the texts, if they differ from the task's `text`."""

    test_text: list[str] | None = None
    """Columns of the texts in test files, if they differ from those of the training file."""

    label: str = "label"
    """Column of the label."""

    skip_malformed: bool = False
    """Leave out rows that cannot be read, counted and reported, instead of refusing the file."""

    labels_as: Literal["names", "index", "number"] = "names"
    """How labels are written: `names`, `index` (the position in the task's `labels`, from 0), or `number`
    (regression)."""


@dataclass
class HubSpec:
    """A task's rows on the Hugging Face hub."""

    path: str = ""
    """Dataset id; empty: the task is not on the hub."""

    name: str | None = None
    """Configuration of the dataset."""

    train: str = "train"
    """Split of the training rows."""

    dev: dict[str, str] = field(default_factory=dict)
    """Name of each dev set -> its split."""

    test: dict[str, str] = field(default_factory=dict)
    """Name of each test set -> its split."""

    text: list[str] | None = None
    """Columns of the texts, if they differ from the task's `text`."""

    label: str = "label"
    """Column of the label; classes are matched by name if the dataset has names."""


@dataclass
class AugmentSpec:
    """TinyBERT's data augmentation (arXiv:1909.10351): words replaced by others that fit in their place."""

    enabled: bool = False
    """Put an `augment` node into the pipeline; KD stages on the task then train on its rows."""

    variants: int = 10
    """Variants of each sentence (N); duplicates are dropped, the original is kept."""

    probability: float = 0.4
    """Chance that a word which may be replaced is replaced, in each variant."""

    candidates: int = 15
    """Words to choose a replacement from."""

    source: CandidateSource = "auto"
    """Where candidates come from: `masked_lm` predicts words of a single piece and takes word vectors for the others;
    `vectors` takes word vectors for all; `auto` is masked_lm if the model has a trained masked-LM head, else vectors."""

    model: str | None = None
    """The masked language model and its embedding matrix: folder or hub id; null takes model.pretrained."""

    vectors: str | None = None
    """A text file of word vectors in GloVe's format; null takes the model's own embedding matrix."""

    stop_words: list[str] | None = None
    """Words that are never replaced; null takes English function words."""

    precision: AugmentPrecision = "auto"
    """Precision of the masked language model: `auto` is bf16-mixed on a CPU or CUDA device that has bf16 instructions, else
    32-true. Candidates of nearly equal rank may change places between the two, so the fingerprint holds which it is."""

    seed: int = 0
    """Seed of the choices. It is not the run's seed, so that augmentation is not repeated for every run seed."""

    path: str | None = None
    """Rows augmented before: a folder that `bitkd augment` made, for the same task, tokenizer and max_length."""


@dataclass
class WindowsSpec:
    """How rows that are too long are read in windows (question answering, token classification)."""

    overlap: int | None = None
    """Tokens that neighbouring windows share; null: a third of data.max_length."""


@dataclass
class AnswersSpec:
    """Answers that are cut out of a context (question answering)."""

    unanswerable: bool = False
    """Whether a row may have no answer, as in SQuAD 2.0."""

    no_answer_threshold: float = 0.0
    """The model answers nothing if the score of no answer exceeds that of the best answer by more than this."""

    longest: int = 30
    """Tokens of an answer at most."""


@dataclass
class SimilaritySpec:
    """The labels of sentence similarity."""

    lowest: float = 0.0
    """The label of two sentences that share nothing: a cosine of 0."""

    highest: float = 5.0
    """The label of two sentences that say the same: a cosine of 1."""


@dataclass
class TaskSpec:
    """A task over one or two texts: their class, a number, an answer in them, or the entities in them."""

    name: str = ""
    """Name of the task; runs are stored under it."""

    text: list[str] = field(default_factory=list)
    """One or two columns of text."""

    labels: list[str] | None = None
    """Label names in the order of the model's outputs; null for a regression, answers and similarity."""

    metric: str = "accuracy"
    """The primary metric, by which checkpoints are selected: one of `metrics`, or pearson_spearman, the mean of both."""

    metrics: list[str] = field(default_factory=lambda: ["accuracy"])
    """Every metric that is reported: accuracy, f1 (of the second label, as GLUE counts it), matthews, pearson, spearman,
    or a class of torchmetrics such as F1Score, CohenKappa, MeanAbsoluteError; for answers exact_match and answer_f1; for
    entities entity_f1, entity_precision and entity_recall."""

    kind: Literal["text_classification", "question_answering", "token_classification", "sentence_similarity"] = (
        "text_classification"
    )
    """What a model answers: `text_classification` the class of a row, or a number if `labels` is null; `question_answering`
    a part of the second text that answers the first; `token_classification` a tag for each word; `sentence_similarity` the
    cosine of the embeddings of two texts that are read one by one."""

    files: FilesSpec = field(default_factory=FilesSpec)
    """Rows on disk, read if data.dir is given."""

    hub: HubSpec = field(default_factory=HubSpec)
    """Rows on the hub, read if data.dir is not given."""

    augmentation: AugmentSpec = field(default_factory=AugmentSpec)
    """The augmented task dataset (DA)."""

    windows: WindowsSpec = field(default_factory=WindowsSpec)
    """Of rows that are longer than data.max_length."""

    answers: AnswersSpec = field(default_factory=AnswersSpec)
    """Of question answering."""

    similarity: SimilaritySpec = field(default_factory=SimilaritySpec)
    """Of sentence similarity."""

    @property
    def of_kind(self) -> KindOfTask:
        """The row of bitkd.data.task_kinds that `kind` names. Raises InputError if there is none."""
        return kind_of_task(self.kind)

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes that a whole row may have; None if it has none."""
        return self.labels if self.of_kind.labels is None else None

    @property
    def has_numbers(self) -> bool:
        """Whether the label of a row is a number: a regression, or a similarity."""
        return self.labels is None and self.of_kind.numbers

    @property
    def num_outputs(self) -> int:
        """Outputs of a model for this task."""
        return len(self.labels) if self.labels else 1


def task_fingerprint(task: TaskSpec, rows: str, local: bool, dev_names: list[str], selection_seed: int) -> str:
    """Hash of a task's rows and of how it reads them; names and paths of files do not count.

    rows: hash of their content.  local: whether they come from files; if not, from the hub.
    """
    files, hub = task.files, task.hub
    source = (
        [files.header, files.text, files.label, files.labels_as, files.skip_malformed]
        if local
        else [hub.path, hub.text, hub.label]
    )
    meaning: list[Any] = [task.text, task.labels, task.metric, task.metrics, source, dev_names]
    if HOLDOUT in dev_names:
        meaning.append([selection_seed, "contexts"] if task.of_kind.holds_out_contexts else selection_seed)
    if task.kind != TaskSpec().kind:
        meaning.append([task.kind, asdict(task.windows), asdict(task.answers), asdict(task.similarity)])
    return hashlib.sha256(json.dumps([rows, meaning]).encode()).hexdigest()
