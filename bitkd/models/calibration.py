"""Start what quantizers of activations learn from the values that they will read."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bitkd.errors import InputError
from bitkd.models.encoder import refuse_packed
from bitkd.models.inputs import model_inputs
from bitkd.quant.inputs import AttentionQuantizer, InputQuantizer


def needs_calibration(model: nn.Module) -> bool:
    """Whether `model` has quantizers of activations that have no start yet."""
    return any(isinstance(module, InputQuantizer) and not module.calibrated for module in model.modules())


@torch.no_grad()
def calibrate(model: PreTrainedModel, batches: Iterable[dict[str, Tensor]]) -> None:
    """Give each quantizer of activations that has no start yet one, from the mean magnitude of its inputs, in place.

    batches: some training rows, one batch is enough: input_ids, attention_mask (batch, length) and what else the model reads.

    The model runs in eval mode, and a quantizer reads what those before it give, already quantized (as in BinaryBERT's and
    BiT's code). Only real tokens count. Quantizers that have started stay as they are, and so do the model's modes.
    Raises InputError if the model is packed, if no batch is given, or if an input of a quantizer is not finite.
    """
    refuse_packed(model, "calibrated")
    if not needs_calibration(model):
        return
    device = next(model.parameters()).device
    modes = [(module, module.training) for module in model.modules()]
    seen = _Magnitudes()
    model.eval()
    try:
        with ExitStack() as hooks:
            for reader, quantizer in _readers(model):
                hooks.callback(reader.register_forward_pre_hook(seen.hook(quantizer)).remove)
            for batch in batches:
                seen.real = batch["attention_mask"].to(device).bool()
                model(**model_inputs({name: column.to(device) for name, column in batch.items()}, model))
    finally:
        for module, training in modes:
            module.training = training
    if needs_calibration(model):
        raise InputError(
            "the model was calibrated without rows; give bitkd.calibrate one batch of training rows or more"
        )


def _readers(model: nn.Module) -> list[tuple[nn.Module, InputQuantizer]]:
    """Each quantizer without a start, and the module that is called with what it quantizes."""
    found: list[tuple[nn.Module, InputQuantizer]] = []
    for module in model.modules():
        children: list[Any] = [child for child in module.children() if isinstance(child, InputQuantizer)]
        own = isinstance(module, AttentionQuantizer)
        found += [(child if own else module, child) for child in children if not child.calibrated]
    return found


class _Magnitudes:
    """The mean magnitudes of what quantizers have read so far."""

    def __init__(self) -> None:
        self.real = torch.ones(0, 0, dtype=torch.bool)
        """(batch, length) of the batch that runs: True = real token."""

        self._sums: dict[InputQuantizer, Tensor] = {}
        """Sum of |x| over real tokens, and how many are not 0."""

    def hook(self, quantizer: InputQuantizer) -> Callable[..., None]:
        """A pre-hook that starts `quantizer` by the mean over all batches until now."""

        def count(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = self._real_tokens(inputs[0])
            exact = torch.float32 if x.device.type == "mps" else torch.float64  # as in bitkd.quant.functional
            sums = torch.stack([x.abs().sum(dtype=exact), torch.count_nonzero(x).to(exact)])
            total = self._sums[quantizer] = self._sums.get(quantizer, torch.zeros_like(sums)) + sums
            if not total.isfinite().all():
                raise InputError(
                    "an activation is not finite, so that its quantizer cannot start; check the model's weights"
                )
            quantizer.start((total[0] / total[1].clamp_min(1)).float())

        return count

    def _real_tokens(self, x: Tensor) -> Tensor:
        """What belongs to real tokens, if x has the batch's tokens: (batch, length, …) or (batch, heads, length, …)."""
        if x.dim() == 4 and (len(x), x.shape[2]) == self.real.shape:
            x = x.transpose(1, 2)
        return x[self.real] if x.shape[:2] == self.real.shape else x
