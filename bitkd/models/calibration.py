"""Start what quantizers of activations learn from the values that they will read."""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bitkd.errors import InputError
from bitkd.models.encoder import refuse_packed
from bitkd.models.inputs import model_inputs
from bitkd.quant.functional import exact_type
from bitkd.quant.inputs import InputQuantizer

Codes = Callable[[Tensor], tuple[Tensor, Tensor]]


def needs_calibration(model: nn.Module) -> bool:
    """Whether `model` has quantizers of activations that have no start yet."""
    return any(isinstance(module, InputQuantizer) and not module.calibrated for module in model.modules())


@torch.no_grad()
def calibrate(model: PreTrainedModel, batches: Iterable[dict[str, Tensor]]) -> None:
    """Give each quantizer of activations that has no start yet one, from the mean magnitude of its inputs, in place.

    batches: some training rows, one batch is enough: input_ids, attention_mask (batch, length) and what else the model reads.

    The model runs in eval mode, and a quantizer reads what those before it give, already quantized (as in BinaryBERT's and
    BiT's code). Only real tokens count. Quantizers that have started stay as they are, and so do the model's modes.
    Raises InputError if the model is packed, if no batch is given, or if an input of a quantizer is not finite. After an error
    only those quantizers have a start that had one before.
    """
    refuse_packed(model, "calibrated")
    if not needs_calibration(model):
        return
    device = next(model.parameters()).device
    modes = [(module, module.training) for module in model.modules()]
    seen = _Magnitudes(model)
    model.eval()
    try:
        with seen:
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


class _Magnitudes:
    """Within this context, the quantizers of `model` that have no start get one, and a better one with each batch; none of
    them keeps it after an error."""

    real: Tensor
    """(batch, length) of the batch that runs: True = real token."""

    def __init__(self, model: nn.Module) -> None:
        found = [module for module in model.modules() if isinstance(module, InputQuantizer)]
        self._sums = {quantizer: torch.zeros(()) for quantizer in found if not quantizer.calibrated}
        """Sum of |x| over the real tokens of all batches until now, and how many numbers are not 0: (2,)."""

    def __enter__(self) -> None:
        for quantizer in self._sums:  # not a hook: the product of a Linear asks for the codes
            setattr(quantizer, "codes", partial(self._codes, quantizer, quantizer.codes))  # noqa: B010

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        for quantizer in self._sums:
            delattr(quantizer, "codes")
            if error is not None:
                quantizer.clear()

    def _codes(self, quantizer: InputQuantizer, codes: Codes, x: Tensor) -> tuple[Tensor, Tensor]:
        real = self._real_tokens(x)
        exact = exact_type(x)
        sums = torch.stack([real.abs().sum(dtype=exact), torch.count_nonzero(real).to(exact)])
        total = self._sums[quantizer] = self._sums[quantizer].to(sums) + sums
        if not total.isfinite().all():
            raise InputError(
                "an activation is not finite, so that its quantizer cannot start; check the model's weights"
            )
        quantizer.start((total[0] / total[1].clamp_min(1)).float())
        return codes(x)

    def _real_tokens(self, x: Tensor) -> Tensor:
        """What belongs to real tokens, if x has the batch's tokens: (batch, length, …) or (batch, heads, length, …)."""
        if x.dim() == 4 and (len(x), x.shape[2]) == self.real.shape:
            x = x.transpose(1, 2)
        return x[self.real] if x.dim() > 2 and x.shape[:2] == self.real.shape else x
