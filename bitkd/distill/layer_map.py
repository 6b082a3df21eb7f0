"""Which teacher layer each student layer learns from, and how to compare different numbers of heads."""

import torch
from torch import Tensor, nn

from bitkd.errors import InputError


def uniform_map(student_layers: int, teacher_layers: int) -> list[int]:
    """Teacher layer of each student layer, k = teacher_layers / student_layers: the last of every k layers
    (TinyBERT, arXiv:1909.10351). Both 0-based. Raises InputError if k is no whole number.
    """
    if student_layers < 1 or teacher_layers % student_layers:
        raise InputError(
            f"{student_layers} student layers do not divide {teacher_layers} teacher layers; use a number of layers "
            "that divides the teacher's, or copy named layers of the teacher"
        )
    k = teacher_layers // student_layers
    return [i * k + k - 1 for i in range(student_layers)]


def hidden_map(attention_map: list[int]) -> list[int]:
    """Teacher hidden state of each student hidden state; 0 is the embedding output, j the output of layer j - 1."""
    return [0, *(layer + 1 for layer in attention_map)]


def group_mean_heads(teacher_scores: Tensor, heads: int) -> Tensor:
    """The mean of each group of consecutive teacher heads.

    teacher_scores: (batch, teacher heads, query, key).  Returns (batch, heads, query, key).
    Raises InputError if the teacher's heads do not form equal groups.
    """
    found = teacher_scores.shape[1]
    if heads < 1 or found % heads:
        raise InputError(
            f"{found} teacher heads do not form {heads} equal groups; use a number of student heads that divides "
            f"{found}, or compare relations instead"
        )
    return teacher_scores.float().unflatten(1, (heads, found // heads)).mean(dim=2)


class HeadSelection(nn.Module):
    """The teacher's heads that each student layer is compared with. It moves with the module that holds it.

    heads: heads[i][h] is the teacher head of head h of student layer i.
    """

    def __init__(self, heads: list[list[int]]) -> None:
        super().__init__()
        self.runs = [range(kept[0], kept[0] + len(kept)) if _is_run(kept) else None for kept in heads]
        for i, kept in enumerate(heads):
            if self.runs[i] is None:
                # On the device once: a list would be copied there in each step.
                self.register_buffer(f"layer_{i}", torch.tensor(kept), persistent=False)

    def forward(self, scores: Tensor, layer: int) -> Tensor:
        """The scores that student layer `layer` is compared with, (batch, its heads, query, key); a view if they are
        consecutive.  scores: (batch, teacher heads, query, key)."""
        run = self.runs[layer]
        if run is None:
            return scores.index_select(1, self.get_buffer(f"layer_{layer}"))
        return scores if len(run) == scores.shape[1] else scores[:, run.start : run.stop]


def _is_run(numbers: list[int]) -> bool:
    return numbers == list(range(numbers[0], numbers[0] + len(numbers)))
