"""Distillation losses, each a scalar computed in FP32.

Losses over tokens take the mean over each example's real tokens, then over the batch: padding, the
composition of the batch and the number of processes change nothing. Values in padded positions are never
read, not even NaN. Two of them can also count padding as published code does (Padding).
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bitkd.errors import InputError

Padding = Literal["skip", "zero", "leave"]
"""How a mean over tokens counts padded positions, see `attention_score_mse`."""


class _SquaredError(torch.autograd.Function):
    """Σ (student - teacher)² of each example, (batch,), in FP32; zero where `unread` is True, whatever stands there.

    student, teacher: (batch, …).  unread: expands to their shape; None reads everything.
    The differences are computed again for the gradient: kept in FP32, those of all layers would be a tenth of the memory
    of a step.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, unread: Tensor | None) -> Tensor:
        ctx.save_for_backward(student, teacher, unread)
        # Row by row: one sum over an example would add 10⁵ numbers in a row and lose two digits.
        norms = torch.linalg.vector_norm(_difference(student, teacher, unread), dim=-1)
        return norms.square().flatten(1).sum(dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        student, teacher, unread = ctx.saved_tensors
        found = _difference(student, teacher, unread)
        found.mul_((2 * gradient).reshape(-1, *[1] * (found.dim() - 1)))
        of_student, of_teacher = ctx.needs_input_grad[:2]
        return (
            found.to(student.dtype) if of_student else None,
            found.neg().to(teacher.dtype) if of_teacher else None,
            None,
        )


def _difference(student: Tensor, teacher: Tensor, unread: Tensor | None) -> Tensor:
    difference = student.float() - teacher.float()
    return difference if unread is None else difference.masked_fill_(unread, 0.0)  # a product would keep NaN


def _squared_error(student: Tensor, teacher: Tensor, unread: Tensor | None = None) -> Tensor:
    error: Tensor = _SquaredError.apply(student, teacher, unread)
    return error


def _pairs(mask: Tensor) -> Tensor:
    """(batch, 1, query, key), True where both are tokens."""
    return mask[:, None, :, None] & mask[:, None, None, :]


def attention_score_mse(student: Tensor, teacher: Tensor, mask: Tensor, padding: Padding = "skip") -> Tensor:
    """Mean squared error of pre-softmax attention scores (TinyBERT, arXiv:1909.10351).

    student, teacher: (batch, heads, query, key), without the mask.  mask: (batch, length), True = token.
    padding: `skip` takes the mean over each example's real query-key pairs, then over the batch, so padding changes nothing.
    The others take the mean over all positions, so that it depends on the length of the batch. `zero` counts padded keys as
    zero, and reads padded queries: TinyBERT's, TernaryBERT's and BinaryBERT's code sets scores of -100 and less to zero, which
    are those with the mask. `leave` reads padded keys too: XTC's code (DeepSpeedExamples, compression/bert) adds the mask to
    both scores, and -10000, as transformers had it then, leaves their difference. (The lowest number, which later versions
    add, swallows the scores: with these the same code computes `zero`.)
    """
    _same_shape(student, teacher)
    mask = mask.bool()
    if padding == "skip":
        error = _squared_error(student, teacher, ~_pairs(mask))
        return (error / (student.shape[1] * _lengths(mask).square())).mean()
    unread = ~mask[:, None, None, :] if padding == "zero" else None
    return _squared_error(student, teacher, unread).sum() / student.numel()


class _MapDivergence(torch.autograd.Function):
    """KL(teacher || student) of the softmax over the keys, summed over an example's heads and read queries, (batch,).

    student, teacher: (batch, heads, query, key) scores.  unread: True at pairs that do not count, expands to their shape.
    Gradients are the differences of the probabilities, which are computed again: kept, those of all layers would be a large
    part of the memory of a step.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, unread: Tensor) -> Tensor:
        ctx.save_for_backward(student, teacher, unread)
        own, target = (_log_map(scores, unread) for scores in (student, teacher))
        divergence = (target.exp() * (target - own)).masked_fill_(unread, 0.0)
        return divergence.sum(dim=-1).flatten(1).sum(dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None]:
        student, teacher, unread = ctx.saved_tensors
        if not ctx.needs_input_grad[0]:
            return None, None, None
        found = _log_map(student, unread).exp_().sub_(_log_map(teacher, unread).exp_()).masked_fill_(unread, 0.0)
        return found.mul_(gradient.reshape(-1, 1, 1, 1)).to(student.dtype), None, None


def _log_map(scores: Tensor, unread: Tensor) -> Tensor:
    """Log-softmax over the keys that are read, in FP32 at least. Not -inf: a query that reads no key would give NaN."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return torch.log_softmax(scores.masked_fill(unread, -1e30), dim=-1)


def attention_map_kl(student: Tensor, teacher: Tensor, mask: Tensor, window: int | None = None) -> Tensor:
    """KL(teacher || student) of attention maps, the softmax of the scores over the real keys (arXiv:2211.11014).

    student, teacher: (batch, heads, query, key) scores, without the mask; no gradient goes to the teacher.  mask: (batch,
    length), True = token.  window: distance from which on a query does not see a key; None: it sees all.
    Mean over each example's heads and real queries, then over the batch, as in the authors' code (kd-qat-large-enc).
    """
    _same_shape(student, teacher)
    mask = mask.bool()
    unread = ~_pairs(mask)
    if window is not None and window < mask.shape[1]:
        position = torch.arange(mask.shape[1], device=mask.device)
        unread = unread | ((position[:, None] - position).abs() >= window)
    divergence: Tensor = _MapDivergence.apply(student, teacher, unread)
    return (divergence / (student.shape[1] * _lengths(mask))).mean()


def hidden_mse(student: Tensor, teacher: Tensor, mask: Tensor, padding: Padding = "skip") -> Tensor:
    """Mean squared error of hidden states (TinyBERT, arXiv:1909.10351).

    student, teacher: (batch, length, width).  mask: (batch, length), True = token.
    padding: `skip` takes the mean over each example's real tokens, then over the batch, so padding changes nothing. The others
    take the mean over everything, padded positions too, as all the published code does.
    """
    _same_shape(student, teacher)
    if padding != "skip":
        return _squared_error(student, teacher).sum() / student.numel()
    mask = mask.bool()
    error = _squared_error(student, teacher, ~mask[:, :, None])
    return (error / (student.shape[2] * _lengths(mask))).mean()


def soft_cross_entropy(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, mean_over_classes: bool = False
) -> Tensor:
    """-Σ softmax(teacher / T) · log softmax(student / T) · T², mean over the batch (arXiv:1503.02531).

    student, teacher: (batch, classes) logits.
    mean_over_classes: the mean over the classes in place of their sum, as the code of TinyBERT, TernaryBERT, BinaryBERT, XTC and
    BiT takes it.
    """
    return _soft_cross_entropies(student, teacher, temperature, mean_over_classes).mean()


def tokens_soft_cross_entropy(
    student: Tensor, teacher: Tensor, mask: Tensor, temperature: float = 1.0, mean_over_classes: bool = False
) -> Tensor:
    """`soft_cross_entropy` of each token: the mean over each example's real tokens, then over the batch.

    student, teacher: (batch, length, classes) logits.  mask: (batch, length), True = token.
    """
    mask = mask.bool()
    losses = _soft_cross_entropies(student, teacher, temperature, mean_over_classes).masked_fill(~mask, 0.0)
    return (losses.sum(dim=1) / _lengths(mask)).mean()


def spans_soft_cross_entropy(
    student: Tensor, teacher: Tensor, mask: Tensor, temperature: float = 1.0, mean_over_classes: bool = False
) -> Tensor:
    """`soft_cross_entropy` of distributions over tokens, the mean over all of them: padding is no class.

    student, teacher: (batch, distributions, length) logits, very low at padding.  mask: (batch, length), True = token.
    """
    losses = _soft_cross_entropies(student, teacher, temperature, mean_over_classes=False)
    return (losses / _lengths(mask)[:, None] if mean_over_classes else losses).mean()


def _soft_cross_entropies(student: Tensor, teacher: Tensor, temperature: float, mean_over_classes: bool) -> Tensor:
    """The soft cross entropy of each distribution over the last dimension."""
    _same_shape(student, teacher)
    if student.shape[-1] == 1:
        raise InputError("soft cross entropy of a single logit is always zero and trains nothing; use regression")
    target = torch.softmax(teacher.float() / temperature, dim=-1)
    log_student = torch.log_softmax(student.float() / temperature, dim=-1)
    losses = -(target * log_student).sum(dim=-1) * temperature**2
    return losses / student.shape[-1] if mean_over_classes else losses


def logits_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of outputs, for regression.  student, teacher: (batch, 1)."""
    _same_shape(student, teacher)
    return (student.float() - teacher.float()).square().mean()


def relation_kl(student: Tensor, teacher: Tensor, mask: Tensor, relation_heads: int) -> Tensor:
    """KL(teacher || student) of self-attention relations (MiniLMv2, arXiv:2012.15828).

    student, teacher: (batch, length, width), one projection (queries, keys or values) with all its heads side
    by side; widths may differ.  mask: (batch, length), True = token.  relation_heads: heads that both are
    re-split into. Mean over each example's heads and real queries, then over the batch.
    """
    for name, width in (("student", student.shape[-1]), ("teacher", teacher.shape[-1])):
        if relation_heads < 1 or width % relation_heads:
            raise InputError(
                f"relation_heads={relation_heads} does not divide the {name}'s width {width}; "
                "use a common divisor of both widths"
            )
    mask = mask.bool()
    with torch.autocast(student.device.type, enabled=False):
        log_student = log_relation(student.float(), mask, relation_heads)
        log_teacher = log_relation(teacher.float(), mask, relation_heads)
        divergence = log_teacher.exp() * (log_teacher - log_student)
        total = divergence.masked_fill(~_pairs(mask), 0.0).sum(dim=(1, 2, 3))
        return (total / (relation_heads * _lengths(mask))).mean()


def log_relation(x: Tensor, mask: Tensor, heads: int) -> Tensor:
    """(batch, heads, query, key): log-softmax over the real keys of the scaled dot products of x with itself.

    x: (batch, length, width).  mask: (batch, length), True = token.  heads: parts that the width is split into.
    """
    x = x.masked_fill(~mask[:, :, None], 0.0).unflatten(-1, (heads, -1)).transpose(1, 2)
    scores = x @ x.transpose(2, 3) * x.shape[-1] ** -0.5
    # Not -inf: a query without any real key would give NaN.
    return torch.log_softmax(scores.masked_fill(~mask[:, None, None, :], -1e30), dim=-1)


def _lengths(mask: Tensor) -> Tensor:
    return mask.sum(dim=1).clamp_min(1).float()


def _same_shape(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise InputError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ in shape; "
            "choose layers and heads of the teacher, or project its width, so that they agree"
        )
