"""Ternary weight splitting as a Lightning callback, for any Trainer."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from typing_extensions import override

from bitkd.errors import InputError
from bitkd.models.prepare import split_ternary_
from bitkd.quant.splitting import is_ternary
from bitkd.quant.swap import is_split, unquantized_activations

_Example = tuple[nn.Module, Any]


class WeightSplitting(pl.Callback):
    """Turns the ternary layers of a module into pairs of binary ones before a fit or validation starts.

    The split happens in `setup`, once: a module that is already split is left as it is, so the callback may stay in a
    Trainer that validates first, resumes or tests. Create the layers in `__init__` or an idempotent `configure_model`.
    It is recorded in the configuration of a model that was quantized by `bitkd.prepare`, so `save_student` can save it.

    The split is checked at once: layer by layer, and by the module's outputs on one batch with FP32 activations.

    example_inputs: that batch, a dict of keyword arguments or a tuple of positional ones for the module's `forward`.
    None takes `example_input_array` or, if a Hugging Face model is inside the module, random token ids.
    tolerance: largest difference allowed; more raises RuntimeError.
    Raises InputError if the module has neither ternary layers nor pairs.

    Example::

        model = bitkd.prepare(model, QuantSpec(weight_bits=2, activation_bits=8))  # then train it, and split it
        Trainer(callbacks=[WeightSplitting()]).validate(MyModule(model), loader)
        bitkd.save_student(model, folder)
    """

    def __init__(
        self, example_inputs: Mapping[str, Any] | Sequence[Any] | None = None, tolerance: float = 1e-5
    ) -> None:
        self.example_inputs = example_inputs
        self.tolerance = tolerance

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        pl_module.configure_model()
        ternary = {name: module for name, module in pl_module.named_modules() if is_ternary(module)}
        if not ternary:
            if is_split(pl_module):
                return
            raise InputError(
                f"{type(pl_module).__name__} has neither ternary nor split layers; quantize it first: "
                "prepare(model, QuantSpec(weight_bits=2))"
            )
        example = self._example(pl_module)
        before = _outputs(pl_module, example)
        # Here, not in on_fit_start: by then the optimizer exists and does not know the new parameters.
        count = split_ternary_(pl_module)
        for name, module in ternary.items():
            split: Any = pl_module.get_submodule(name)
            self._compare(f"layer {name}", split.dequantized(), module.dequantized())
        after = _outputs(pl_module, example)
        for position, (old, new) in enumerate(zip(before, after, strict=True)):
            self._compare(f"output {position} of the split model", new, old)
        checked = "weights and outputs" if before else "weights"
        rank_zero_info(f"split {count} ternary layers into binary pairs; {checked} are unchanged")

    def _compare(self, what: str, split: Tensor, ternary: Tensor) -> None:
        deviation = (split.double() - ternary.double()).abs().max().item() if split.numel() else 0.0
        if not deviation <= self.tolerance:  # NaN fails too
            raise RuntimeError(
                f"{what} deviates by {deviation:.3g} from the ternary one (tolerance {self.tolerance:.3g}); "
                "check that forward is deterministic in eval mode and that no layer of the ternary model is shared"
            )

    def _example(self, pl_module: pl.LightningModule) -> _Example | None:
        """The module to run and its inputs; None if there are no inputs to try."""
        inputs: Any = self.example_inputs
        if inputs is None:
            inputs = pl_module.example_input_array
        if inputs is not None:
            return pl_module, inputs
        for module in pl_module.modules():
            language_model = hasattr(module, "get_input_embeddings") and hasattr(module, "config")
            if language_model and any(is_ternary(child) for child in module.modules()):
                return module, _random_tokens(module.config)
        return None


def _random_tokens(config: Any) -> dict[str, Tensor]:
    """Two sequences of token ids for a Hugging Face model, always the same ones."""
    length = min(16, max(1, getattr(config, "max_position_embeddings", 512) // 2))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (2, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.no_grad()
def _outputs(pl_module: pl.LightningModule, example: _Example | None) -> list[Tensor]:
    """All floating-point outputs for the example, in eval mode, with FP32 activations; the random state is kept."""
    if example is None:
        return []
    model, inputs = example
    device = next(model.parameters()).device
    inputs = move_data_to_device(inputs, device)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), _eval_mode(pl_module), unquantized_activations(pl_module):
        if isinstance(inputs, Mapping):
            output = model(**inputs)
        else:
            output = model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)
    return list(_tensors(output))


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, Sequence) and not isinstance(output, str):
        for value in output:
            yield from _tensors(value)


@contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    training = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, before in training:
            child.training = before
