"""Which classes of transformers answer which kind of task. It imports no torch, so that wrong input is answered at once."""

from dataclasses import dataclass

ENCODER = "sentence_similarity"
"""The kind of task that a bare encoder answers, by its embeddings."""


@dataclass(frozen=True)
class Answer:
    """How the models that answer one kind of task are named."""

    auto: str
    """The class of transformers that gives a model of any family."""

    suffix: str
    """End of the names of the classes of each family."""

    tag: str
    """Name of the task on the hub."""

    noun: str
    """What such a model is called."""

    output: str
    """The field of its output to begin with."""


ANSWERS = {
    "text_classification": Answer(
        "AutoModelForSequenceClassification", "ForSequenceClassification", "text-classification", "classifier", "logits"
    ),
    "question_answering": Answer(
        "AutoModelForQuestionAnswering",
        "ForQuestionAnswering",
        "question-answering",
        "question answering model",
        "start_logits",
    ),
    "token_classification": Answer(
        "AutoModelForTokenClassification", "ForTokenClassification", "token-classification", "tagger", "logits"
    ),
    ENCODER: Answer("AutoModel", "Model", "sentence-similarity", "sentence encoder", "last_hidden_state"),
}
"""Kind of task -> its models."""


def kind_answered(architecture: str) -> str | None:
    """The kind of task that a class of transformers answers, by its name; None if none."""
    return next((kind for kind, answer in ANSWERS.items() if architecture.endswith(answer.suffix)), None)
