"""Which heads and FFN neurons matter most (DynaBERT, arXiv:2004.04037, section 2.1)."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bitkd.models.encoder import read_spec, refuse_packed
from bitkd.models.heads import BARE, head_of
from bitkd.models.inputs import model_inputs
from bitkd.quant.layout import layers_of


@dataclass
class Importance:
    """Importance of each head and FFN neuron of a model; those with larger values are kept."""

    heads: Tensor
    """(layers, heads)"""

    neurons: Tensor
    """(layers, neurons)"""


def estimate_importance(model: PreTrainedModel, batches: Iterable[dict[str, Tensor]]) -> Importance:
    """First-order importance of every head and neuron, summed over `batches` of training rows.

    Each head's output and each FFN activation is multiplied by a mask of ones; the importance is |dL/dmask|. For a neuron
    that equals |w · dL/dw| of its outgoing weights, the published measure. For a model that answers a task, L is the task's
    loss on the labels. A task-agnostic encoder has none: there L is a random projection of the last hidden states, whose
    squared gradient estimates the diagonal of the Gauss-Newton matrix of their mean squared error.
    Dropout is off; the model's parameters and modes are left as they were. Raises InputError if the model is packed.
    """
    refuse_packed(model, "made smaller")
    spec = read_spec(model)
    layers = layers_of(model)
    device = next(model.parameters()).device
    head_masks = [torch.ones(spec.heads, device=device, requires_grad=True) for _ in layers.modules]
    neuron_masks = [torch.ones(spec.neurons, device=device, requires_grad=True) for _ in layers.modules]
    heads, neurons = torch.zeros(len(layers.modules), spec.heads), torch.zeros(len(layers.modules), spec.neurons)
    head = head_of(model)
    generator = torch.Generator().manual_seed(0)
    was_training = model.training
    model.eval()
    with ExitStack() as hooks:
        for linear, mask in zip(layers.parts("attention_output"), head_masks):
            hooks.callback(_mask_input(linear, mask.repeat_interleave, spec.head_size).remove)
        for linear, mask in zip(layers.parts("down"), neuron_masks):
            hooks.callback(_mask_input(linear, mask.repeat_interleave, 1).remove)
        for batch in batches:
            batch = {name: column.to(device) for name, column in batch.items()}
            inputs = model_inputs(batch, model)
            if "labels" in batch and (head is not BARE or spec.trained_head):
                loss = head.label_loss(head.logits(model(**inputs), batch), batch)
            else:
                hidden = model(**inputs).last_hidden_state
                signs = torch.randint(0, 2, hidden.shape, generator=generator).mul_(2).sub_(1).to(hidden)
                loss = (hidden * signs * inputs["attention_mask"].unsqueeze(-1)).sum()
            gradients = torch.autograd.grad(loss, head_masks + neuron_masks)
            heads += torch.stack([g.abs().cpu() for g in gradients[: len(layers.modules)]])
            neurons += torch.stack([g.abs().cpu() for g in gradients[len(layers.modules) :]])
    model.train(was_training)
    return Importance(heads, neurons)


def _mask_input(module: nn.Module, expand: Callable[[int], Tensor], times: int) -> torch.utils.hooks.RemovableHandle:
    return module.register_forward_pre_hook(lambda _, args: (args[0] * expand(times), *args[1:]))
