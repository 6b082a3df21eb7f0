"""The heads of models: which class of transformers answers a kind of task, what its logits are, and the loss of its labels.

A head is known from the class of a model, so nothing else has to be told which one it has.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from bitkd.distill.similarity import mean_pooling, pair_cosines, similarity_mse
from bitkd.errors import InputError
from bitkd.models.answers import ANSWERS, ENCODER, kind_answered


@dataclass(frozen=True)
class Head(ABC):
    """One kind of head.  Shapes: `rows` are those of input_ids."""

    name: str
    """The kind of task that it answers (bitkd.data.task_kinds)."""

    has_classes: bool = True
    """Whether its outputs are classes, which have names."""

    can_keep_logits: ClassVar[bool] = False
    """Whether the logits of a row are a few numbers that can be kept for all rows."""

    @property
    def auto_class(self) -> Any:
        """The class of transformers that gives a model of any family with this head."""
        return getattr(transformers, ANSWERS[self.name].auto)

    def is_number(self, config: PretrainedConfig) -> bool:
        """Whether a model of this configuration answers one number."""
        return False

    def logits(self, output: Any, batch: dict[str, Tensor]) -> Tensor:
        """What the model answers.  output: of its forward.  batch: its inputs, and what else belongs to the rows."""
        logits: Tensor = output.logits
        return logits

    @abstractmethod
    def label_loss(self, logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """The loss on `labels`, a scalar in FP32: what a teacher is trained with.  logits: those of `logits`."""

    def label_weight(self, batch: dict[str, Tensor]) -> int | Tensor:
        """What `label_loss` is a mean over: the labelled rows of the batch, of which a pair of texts is one."""
        return len(batch["labels"])

    def example_labels(self, numbers: bool) -> Tensor:
        """The labels of a batch of one row with one token.  numbers: whether a label is a number."""
        return torch.zeros(1) if numbers else torch.zeros(1, dtype=torch.long)

    def answers(self, logits: Tensor, batch: dict[str, Tensor]) -> tuple[Any, ...]:
        """What the metrics of the task are updated with.  logits: those of `logits` in FP32."""
        return logits, batch

    def kept(self, logits: Tensor) -> Tensor | None:
        """What is kept of every row after a validation, (rows of the task, outputs); None: what the metrics say of it."""
        return None


@dataclass(frozen=True)
class ClassHead(Head):
    """One class, or one number, for each row: logits (rows, classes)."""

    can_keep_logits: ClassVar[bool] = True

    def is_number(self, config: PretrainedConfig) -> bool:
        return getattr(config, "num_labels", None) == 1

    def label_loss(self, logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
        if logits.shape[1] == 1:
            return nn.functional.mse_loss(logits[:, 0].float(), batch["labels"].float())
        return nn.functional.cross_entropy(logits.float(), batch["labels"])

    def answers(self, logits: Tensor, batch: dict[str, Tensor]) -> tuple[Any, ...]:
        return logits[:, 0] if logits.shape[1] == 1 else logits.argmax(dim=1), batch["labels"]

    def kept(self, logits: Tensor) -> Tensor | None:
        return logits


@dataclass(frozen=True)
class SpanHead(Head):
    """The first and the last token of an answer: logits (rows, length, 2)."""

    def logits(self, output: Any, batch: dict[str, Tensor]) -> Tensor:
        return torch.stack([output.start_logits, output.end_logits], dim=-1)

    def label_loss(self, logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Mean of the cross entropies of the first and the last token (Devlin et al., arXiv:1810.04805)."""
        places = over_tokens(logits, batch["attention_mask"]).mT.flatten(0, 1)
        # Of two dimensions: the kernel for more adds in no fixed order on a GPU.
        return nn.functional.cross_entropy(places, batch["labels"].flatten())

    def example_labels(self, numbers: bool) -> Tensor:
        return torch.zeros(1, 2, dtype=torch.long)


@dataclass(frozen=True)
class TokenHead(Head):
    """A class for each token: logits (rows, length, classes)."""

    def label_loss(self, logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Cross entropy of the tokens that have a label (others are negative); 0 if none has."""
        labels = batch["labels"]
        total = nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="sum")
        return total / self.label_weight(batch).clamp_min(1)

    def label_weight(self, batch: dict[str, Tensor]) -> Tensor:
        """The tokens that have a label."""
        return (batch["labels"] >= 0).sum()

    def example_labels(self, numbers: bool) -> Tensor:
        return torch.zeros(1, 1, dtype=torch.long)


@dataclass(frozen=True)
class Embedding(Head):
    """No head: a bare encoder, whose answer is the cosine of two texts' embeddings. Logits are embeddings (rows, hidden)."""

    def is_number(self, config: PretrainedConfig) -> bool:
        return True

    def logits(self, output: Any, batch: dict[str, Tensor]) -> Tensor:
        return mean_pooling(output.last_hidden_state, batch["attention_mask"])

    def label_loss(self, logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
        return similarity_mse(logits, batch["labels"])

    def answers(self, logits: Tensor, batch: dict[str, Tensor]) -> tuple[Any, ...]:
        return pair_cosines(logits), batch["labels"]

    def kept(self, logits: Tensor) -> Tensor | None:
        return pair_cosines(logits).unsqueeze(1)


CLASSES = ClassHead("text_classification")

HEADS: dict[str, Head] = {
    head.name: head
    for head in (
        CLASSES,
        SpanHead("question_answering", has_classes=False),
        TokenHead("token_classification"),
        Embedding(ENCODER, has_classes=False),
    )
}
"""Kind of task -> its head."""

BARE = HEADS[ENCODER]
"""That of a bare encoder."""


def head_of(model: PreTrainedModel) -> Head:
    """The head of a model. Raises InputError if it is of another kind."""
    if isinstance(own := getattr(model, "answers_by", None), Head):
        return own
    if model.base_model is model:
        return BARE
    if (kind := kind_answered(type(model).__name__)) is None:
        known = ", ".join(answer.suffix for kind, answer in ANSWERS.items() if kind != ENCODER)
        raise InputError(f"{type(model).__name__} has no head of a kind of task; use a class that ends in {known}")
    return HEADS[kind]


def head_in(config: PretrainedConfig) -> Head:
    """The head that a configuration names as its architecture; that of a bare encoder if it names none."""
    return HEADS[kind_answered((config.architectures or [""])[0]) or ENCODER]


def over_tokens(logits: Tensor, mask: Tensor) -> Tensor:
    """Logits over the real tokens, (rows, length, outputs) in FP32: padding is so low that its probability is 0.

    mask: (rows, length), 1 = token.
    """
    # Not -inf: 0 · inf in a soft cross entropy would be NaN.
    return logits.float().masked_fill(~mask.bool().unsqueeze(-1), -1e9)
