"""What is recorded of each row of a dev set, and what it is compared with, by the task's metric."""

from dataclasses import dataclass

from bitkd.data.task_kinds import OF_ANSWERS, OF_ENTITIES


@dataclass(frozen=True)
class Form:
    """What a row's prediction is. The baseline is a model that looks at no text."""

    outputs: int = 1
    """Numbers of each row in an artifact's predictions, unless the task has labels, which have one each."""

    noun: str = "baseline"
    """The baseline, after “the”."""

    short: str = "majority"
    """The baseline in legends."""

    always: str = "always the most frequent label"
    """What it predicts."""

    score_of: str = "always predicting the most frequent dev label (regression: the mean)"
    """The same, after “the score of”."""

    nothing: str = "predicts the same for every"
    """Of a model that is no better than the baseline, before “dev row”."""


VALUES = Form(noun="majority")
"""A label or a number, as the row's label is one."""

ANSWERS = Form(
    short="no answer",
    always="no answer for any row",
    score_of="no answer for any row",
    nothing="is no better than no answer in any",
)
"""The row's own score, 0 to 1; its label is 1, or 0 if the question has no answer. The score is the mean over rows."""

ENTITIES = Form(
    outputs=2,
    short="no entity",
    always="no entity in any row",
    score_of="finding no entity in any row",
    nothing="finds no right entity in any",
)
"""How many entities were found, and how many of these are right; the row's label is how many there are. The score is that of
the sums over rows.
"""


def form_of(metric: str) -> Form:
    """The form of a task's predictions.  metric: its primary one."""
    if metric in OF_ANSWERS:
        return ANSWERS
    return ENTITIES if metric in OF_ENTITIES else VALUES


_TEXTS = {
    "exact_match": (
        "exact match",
        "The share of questions whose answer is a right one, apart from case, punctuation, articles and spaces (as SQuAD has "
        "it).",
    ),
    "answer_f1": (
        "answer F1",
        "F1 of the words that the answer and a right one have in common, the best of all right ones; the mean over questions (as "
        "SQuAD has it).",
    ),
    "entity_f1": (
        "entity F1",
        "2 × right / (found + true), of the entities of all rows together. An entity is right if its words and its type are (as "
        "CoNLL has it).",
    ),
    "entity_precision": (
        "entity precision",
        "The share of the entities found, in all rows together, whose words and type are right.",
    ),
    "entity_recall": (
        "entity recall",
        "The share of the true entities of all rows together that were found with the right words and type.",
    ),
}


def metric_text(metric: str) -> str:
    """A metric's name for people."""
    return _TEXTS[metric][0] if metric in _TEXTS else metric


def metric_meaning(metric: str) -> str:
    """A sentence on what a metric is; empty for those whose names say it."""
    return _TEXTS[metric][1] if metric in _TEXTS else ""
