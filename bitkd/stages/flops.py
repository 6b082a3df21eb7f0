"""What training costs in floating-point operations of matrix products, the teacher's forward included."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import PreTrainedModel

from bitkd.callbacks.flops import RowFlops
from bitkd.models.importance import estimate_importance
from bitkd.models.inputs import model_inputs, texts_per_row
from bitkd.stages.base import StudentModule
from bitkd.stages.distillation import DistillationModule
from bitkd.stages.terms import relate_teacher

PROBES = (2, 4, 6)
"""Lengths that a row's FLOPs are counted at: a polynomial of degree 2 in the length is known from three."""


def row_flops(module: StudentModule, batch: dict[str, Tensor]) -> tuple[RowFlops, RowFlops]:
    """FLOPs of one training row by its padded length: of the student's forward and backward, and of the teacher's forward
    and its own products in the loss (0 if no term reads the teacher; with kept logits it is that of computing them).

    Counted by the formulas of torch.utils.flop_counter: two for each multiplication and addition of a matrix product; elementwise
    operations do not count. FLOPs are quadratic in the length, so three short rows determine them.
    The module is counted in training mode, whatever mode it is in: outside of it, the halves of a split layer may be
    multiplied one by one. batch: any training batch, for its columns. Mode, random state and gradients stay as they are.
    """
    students, teachers = [], []
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    with _probing(module.device), _in_training(module):
        for length in PROBES:
            row = _row(batch, length)
            with _Counter() as counter:
                loss = torch.stack([term.float() for term in module.loss_terms(row).values()]).sum()
                # Not `backward`: it would leave gradients and start DDP's synchronization.
                torch.autograd.grad(loss, trained, allow_unused=True)
            with _Counter() as of_teacher, torch.no_grad():
                if isinstance(module, DistillationModule) and module.reads_teacher:
                    module.teacher(**model_inputs(row, module.teacher))
            with _Counter() as of_target:
                if isinstance(module, DistillationModule) and module.runs_teacher:
                    module.ask_teacher(row)  # with the products for the scores that are read
            with _Counter() as of_relations:
                if isinstance(module, DistillationModule) and module.runs_teacher:
                    relate_teacher(module, row["attention_mask"])
            teachers.append(of_teacher.flops + of_relations.flops)
            students.append(counter.flops - of_target.flops - of_relations.flops)
    texts = texts_per_row(batch)
    return _fit(students, texts), _fit(teachers, texts)


def importance_flops(model: PreTrainedModel, batch: dict[str, Tensor]) -> RowFlops:
    """FLOPs by the padded length of a row that the importance of heads and neurons is estimated on, forward and backward.

    batch: any training batch, for its columns. Random state, mode and gradients of the model stay as they are.
    """
    found = []
    with _probing(model.device):
        for length in PROBES:
            with _Counter() as counter:
                estimate_importance(model, [_row(batch, length)])
            found.append(counter.flops)
    return _fit(found, texts_per_row(batch))


@contextmanager
def _probing(device: torch.device) -> Iterator[None]:
    """Inside, random states of the outside are kept, and attention is counted: fused on a CPU, it has no count."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []), sdpa_kernel(SDPBackend.MATH):
        yield


@contextmanager
def _in_training(module: torch.nn.Module) -> Iterator[None]:
    """Inside, a module and its parts are in training mode; afterwards each is in the mode that it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.train()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


class _Counter(TorchDispatchMode):
    """Counts the FLOPs of the matrix products inside, by torch's formulas.

    FlopCounterMode uses the same formulas. It takes several times as long, because it tries to decompose every operation,
    and its hooks fail where a module gets a parameter as its input (DeBERTa).
    """

    flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if formula := flop_registry.get(func.overloadpacket):
            self.flops += formula(*args, **kwargs, out_val=result)
        return result


def _row(batch: dict[str, Tensor], length: int) -> dict[str, Tensor]:
    """One row of the task with `length` tokens; what is not known of each token points at the first one."""
    texts, width = texts_per_row(batch), batch["input_ids"].shape[1]

    def resized(column: Tensor) -> Tensor:
        if column.dim() == 1:
            return column[:1]
        if column.shape[1] != width:
            return torch.zeros_like(column[:1])
        rows = texts if len(column) == len(batch["input_ids"]) else 1
        return torch.ones_like(column[:1, :1]).expand(rows, length)

    return {name: resized(column) for name, column in batch.items()}


def _fit(flops: list[int], texts: int) -> RowFlops:
    """The polynomial through the FLOPs of a text at PROBES, which are equally far apart.  flops: of `texts` texts."""
    first, second, third = (count // texts for count in flops)
    step, start = PROBES[1] - PROBES[0], PROBES[0]
    square = (third - 2 * second + first) // (2 * step**2)
    linear = (second - first) // step - square * (2 * start + step)
    return first - linear * start - square * start**2, linear, square
