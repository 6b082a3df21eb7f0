"""The kinds of tasks: one row each, with what is asked of a kind. What is done for one kind alone has a table of its own, by
the same names: heads, the term of logits, predictors.

It imports no torch, so that a wrong setting is refused at once.
"""

from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

from bitkd.errors import InputError, nearest

OF_LABELS = ("Accuracy", "CohenKappa", "F1Score", "JaccardIndex", "Precision", "Recall", "Specificity")
"""Metrics of predicted labels, by torchmetrics' own names; those that average over classes give each the same weight
(macro)."""

OF_NUMBERS = (
    "ConcordanceCorrCoef",
    "ExplainedVariance",
    "KendallRankCorrCoef",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "R2Score",
)
"""Metrics of a regression, by torchmetrics' own names."""

OF_ANSWERS = ("exact_match", "answer_f1")
"""Metrics of extracted answers (question answering)."""

OF_ENTITIES = ("entity_f1", "entity_precision", "entity_recall")
"""Metrics of entities (token classification), micro averages."""

GLUE_OF_LABELS = ("accuracy", "f1", "matthews")
GLUE_OF_NUMBERS = ("pearson", "spearman", "pearson_spearman")


@dataclass(frozen=True)
class KindOfTask:
    """What the rows of a task are, what a model answers to them, and what can be done with it."""

    name: str
    """The value of `task.kind`."""

    rows: str
    """`package.module:Class` of its rows (a subclass of bitkd.data.task_rows.TaskRows), imported when rows are read."""

    reader: str
    """`package.module:function` that reads its files: `bitkd.data.files:read_rows`, or one that takes and raises the same. It
    imports no torch."""

    texts: tuple[int, ...]
    """How many columns of text `task.text` may name."""

    metrics: tuple[str, ...]
    """The metrics that it can have. Those of text classification follow its labels too."""

    labels: bool | None
    """Whether `task.labels` names the outputs: True, False, or None if the task may do either (a regression has none)."""

    numbers: bool = False
    """Whether a row without class names has a number: a regression, or a similarity."""

    cosines: bool = False
    """Whether the number is the cosine of two embeddings: labels from similarity.lowest to .highest are read as 0 to 1."""

    tags: bool = False
    """Whether its labels are tags of words, of which one is O."""

    can_augment: bool = True
    """Whether words of its texts can be replaced (TinyBERT's augmentation) without changing what the label points at."""

    can_keep_logits: bool = False
    """Whether the teacher's logits of a row are a few numbers, so that they may be kept for all training rows."""

    pools: bool = False
    """Whether its head reads the encoder's pooler, if it has one."""

    texts_per_row: int = 1
    """Rows of a batch's input_ids for each row of the task: 2 where the encoder reads the two texts one by one."""

    holds_out_contexts: bool = False
    """Whether `data.selection=holdout` divides the second texts, of which each may belong to many rows, and not the rows."""

    @property
    def rows_class(self) -> Any:
        return resolve_name(self.rows)

    @property
    def read(self) -> Any:
        return resolve_name(self.reader)


KINDS_OF_TASKS: dict[str, KindOfTask] = {
    kind.name: kind
    for kind in (
        KindOfTask(
            "text_classification",
            "bitkd.data.task_rows:TaskRows",
            "bitkd.data.files:read_rows",
            texts=(1, 2),
            metrics=(*GLUE_OF_LABELS, *OF_LABELS, *GLUE_OF_NUMBERS, *OF_NUMBERS),
            labels=None,
            numbers=True,
            can_keep_logits=True,
            pools=True,
        ),
        KindOfTask(
            "question_answering",
            "bitkd.data.answer_rows:AnswerRows",
            "bitkd.data.answer_files:read_answers",
            texts=(2,),
            metrics=OF_ANSWERS,
            labels=False,
            can_augment=False,
            holds_out_contexts=True,
        ),
        KindOfTask(
            "token_classification",
            "bitkd.data.token_rows:TokenRows",
            "bitkd.data.token_files:read_tokens",
            texts=(1,),
            metrics=OF_ENTITIES,
            labels=True,
            tags=True,
            can_augment=False,
        ),
        KindOfTask(
            "sentence_similarity",
            "bitkd.data.similarity_rows:SimilarityRows",
            "bitkd.data.files:read_rows",
            texts=(2,),
            metrics=(*GLUE_OF_NUMBERS, *OF_NUMBERS),
            labels=False,
            numbers=True,
            cosines=True,
            texts_per_row=2,
        ),
    )
}
"""Name -> kind."""


def kind_of_task(name: str) -> KindOfTask:
    """The kind of this name. Raises InputError if there is none."""
    if name not in KINDS_OF_TASKS:
        raise InputError(f"task.kind={name} is unknown; {nearest(name, KINDS_OF_TASKS)}")
    return KINDS_OF_TASKS[name]
