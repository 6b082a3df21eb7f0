"""The terms of the distillation objective, as rows of bitkd.stages.spec.TERMS name them.

Each takes the DistillationModule (for its `loss` settings and its `map` of layers and heads), the outputs of the student and
of the teacher, and the batch, and returns a scalar, without its weight.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bitkd.distill.layer_map import group_mean_heads
from bitkd.distill.losses import (
    attention_map_kl,
    attention_score_mse,
    hidden_mse,
    log_relation,
    logits_mse,
    relation_kl,
    soft_cross_entropy,
    spans_soft_cross_entropy,
    tokens_soft_cross_entropy,
)
from bitkd.distill.similarity import embedding_loss
from bitkd.models.heads import Head, over_tokens
from bitkd.stages.spec import LossSpec

if TYPE_CHECKING:
    from bitkd.stages.distillation import DistillationModule

Batch = dict[str, Tensor]


def logits_term(module: "DistillationModule", student: Any, teacher: Any, batch: Batch) -> Tensor:
    """The student's answer against the teacher's: of classes the soft cross entropy, of a regression the squared error; of
    answers the soft cross entropies over the tokens that they may begin and end at; of tokens that of each token; of
    embeddings their cosine (`embedding_loss`).
    """
    return _LOGITS[module.head.name](module.loss, module.head, student, teacher, batch)


def _classes(loss: LossSpec, head: Head, student: Any, teacher: Any, batch: Batch) -> Tensor:
    if student.logits.shape[1] > 1:
        return soft_cross_entropy(student.logits, teacher.logits, loss.temperature, loss.mean_over_classes)
    target = batch["labels"].unsqueeze(1) if loss.regression_target == "label" else teacher.logits
    return logits_mse(student.logits, target)


def _spans(loss: LossSpec, head: Head, student: Any, teacher: Any, batch: Batch) -> Tensor:
    """Over (rows, 2, length): one distribution over the tokens for the first token of the answer, one for the last."""
    mask = batch["attention_mask"]
    own, target = (over_tokens(head.logits(output, batch), mask).mT for output in (student, teacher))
    return spans_soft_cross_entropy(own, target, mask, loss.temperature, loss.mean_over_classes)


def _tokens(loss: LossSpec, head: Head, student: Any, teacher: Any, batch: Batch) -> Tensor:
    """Mean over each row's real tokens, then over the rows: as of the other terms, padding changes nothing."""
    own, target = (head.logits(output, batch) for output in (student, teacher))
    return tokens_soft_cross_entropy(own, target, batch["attention_mask"], loss.temperature, loss.mean_over_classes)


def _embeddings(loss: LossSpec, head: Head, student: Any, teacher: Any, batch: Batch) -> Tensor:
    own = head.logits(student, batch)
    if loss.regression_target == "label":
        return head.label_loss(own, batch)
    return embedding_loss(own, head.logits(teacher, batch))


_LOGITS: dict[str, Callable[[LossSpec, Head, Any, Any, Batch], Tensor]] = {
    "text_classification": _classes,
    "question_answering": _spans,
    "token_classification": _tokens,
    "sentence_similarity": _embeddings,
}
"""Head -> the term of its logits."""


def hidden_term(module: "DistillationModule", student: Any, teacher: Any, batch: Batch) -> Tensor:
    """MSE of the embedding output and of each layer's output, summed over layers."""
    mask, project = batch["attention_mask"].bool(), module.project or nn.Identity()
    pairs = [(project(student.hidden_states[j]), teacher.hidden_states[t]) for j, t in enumerate(module.map.hidden)]
    return torch.stack([hidden_mse(s, t, mask, module.loss.padding) for s, t in pairs]).sum()


def attention_term(module: "DistillationModule", student: Any, teacher: Any, batch: Batch) -> Tensor:
    """MSE of pre-softmax attention scores, summed over layers. Heads without a source in the teacher: `loss.unmatched_heads`."""
    mask = batch["attention_mask"].bool()
    if module.recorders:
        return _relations(module, mask)
    losses = []
    for i, t in enumerate(module.map.attention):
        own = student.attentions[i]
        source = _source(module, teacher.attentions[t], i, own)
        losses.append(attention_score_mse(own, source, mask, module.loss.padding))
    return torch.stack(losses).sum()


def attention_map_term(module: "DistillationModule", student: Any, teacher: Any, batch: Batch) -> Tensor:
    """KL of attention maps, summed over layers (arXiv:2211.11014). It reads real tokens only, whatever `loss.padding` says.
    Heads without a source are compared with the map of the mean scores of a group of teacher heads.
    """
    mask, losses = batch["attention_mask"].bool(), []
    for i, t in enumerate(module.map.attention):
        own = student.attentions[i]
        losses.append(attention_map_kl(own, _source(module, teacher.attentions[t], i, own), mask, module.windows[i]))
    return torch.stack(losses).sum()


def attention_output_term(module: "DistillationModule", student: Any, teacher: Any, batch: Batch) -> Tensor:
    """MSE of the attention blocks' outputs, summed over layers (arXiv:2211.11014): of what the FFN reads, behind the residual
    connection and LayerNorm.
    """
    mask, project = batch["attention_mask"].bool(), module.project or nn.Identity()
    own, target = student.attention_outputs, teacher.attention_outputs
    pairs = [(project(own[i]), target[t]) for i, t in enumerate(module.map.attention)]
    return torch.stack([hidden_mse(s, t, mask, module.loss.padding) for s, t in pairs]).sum()


def _source(module: "DistillationModule", scores: Tensor, layer: int, student: Tensor) -> Tensor:
    """The teacher's scores that those of a student layer are compared with, of equal shape."""
    if module.map.heads is None:
        return group_mean_heads(scores, student.shape[1])
    return module.select_heads(scores, layer)


def relate_teacher(module: "DistillationModule", mask: Tensor) -> None:
    """The products that the relation loss makes of the teacher's last projections alone, to count them; none for other
    losses.

    mask: (batch, length), 1 = token.
    """
    for projections in [module.recorders[1].projections[t] for t in module.map.attention] if module.recorders else []:
        for projection in projections:
            log_relation(projection.float(), mask.bool(), module.teacher_heads)


def _relations(module: "DistillationModule", mask: Tensor) -> Tensor:
    student, teacher = (recorder.projections for recorder in module.recorders)
    heads = math.gcd(module.teacher_heads, student[0][0].shape[-1], teacher[0][0].shape[-1])
    return torch.stack(
        [
            torch.stack([relation_kl(s, q, mask, heads) for s, q in zip(student[i], teacher[t])]).mean()
            for i, t in enumerate(module.map.attention)
        ]
    ).sum()
