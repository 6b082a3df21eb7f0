"""Hidden states, attention scores and attention outputs of a forward pass, read and replaced in a way that torch.compile can
follow.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bitkd.models.attention import KEEPS, KEPT, MIXED, Mixed
from bitkd.quant.layout import layers_of


@dataclass(frozen=True)
class Parts:
    """What of a forward pass is read. All of it is of every layer."""

    hidden: bool = False
    """The embedding output and each layer's output, as `hidden_states`."""

    scores: bool | str = False
    """Which pre-softmax attention scores, as `output_attentions` of `attention_with_scores`; they are in `attentions`."""

    outputs: bool = False
    """What each FFN reads, as `attention_outputs`: the attention block's output behind its residual connection and
    LayerNorm."""

    projected: bool = False
    """What the Linear behind attention gives, as `attention_projected`: before dropout and the residual connection."""


@dataclass(frozen=True)
class Mixture:
    """What takes the place of a student's own tensors in a forward pass (teacher intervention, arXiv:2302.11812). A tensor x
    becomes (1 - weight) · x + weight · the teacher's, so that at weight 1 no gradient reaches what computed x.
    """

    maps: Sequence[Mixed] = ()
    """Of each layer, the teacher's scores, whose softmax is mixed into its attention map; empty: none."""

    projected: Sequence[Mixed] = ()
    """Of each layer, what is mixed into the output of the Linear behind attention; empty: none."""


class LayerReader:
    """Runs a model that uses `attention_with_scores`, and reads parts of it.

    Hidden states and attention scores are those of `output_hidden_states=True` and `output_attentions=`. transformers collects
    these by hooks inside the layers, which cannot be compiled and would cut the graph of each layer into three. Here hidden
    states are read between the layers, and modules keep their own tensors. Hooks inside a layer are the same function in all
    layers, so that equal layers are compiled once.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        layers = layers_of(model)
        self._model: Any = model
        self._layers: list[nn.Module] = list(layers.modules)
        self._attention: list[Any] = layers.parts("attention")
        self._projections: list[Any] = layers.parts("attention_output")
        self._ffn: list[Any] = layers.parts("up")

    def run(self, parts: Parts, mixture: Mixture | None = None, **inputs: Tensor) -> Any:
        """The model's output for `inputs`, with what `parts` names, and with `mixture` in place of the model's own."""
        mixture = mixture or Mixture()
        states: list[Tensor] = []
        handles: list[Any] = []
        given: list[tuple[Any, str, Any]] = []
        if parts.hidden:
            handles = [layer.register_forward_pre_hook(_keep_input(states), with_kwargs=True) for layer in self._layers]
            # Not the output of the last layer: some encoders normalize it.
            handles.append(self._model.base_model.register_forward_hook(lambda _, __, output: states.append(output[0])))
        if parts.scores:
            given += [(module, KEEPS, parts.scores) for module in self._attention]
        given += [
            (module, MIXED, mixed) for module, mixed in zip(self._attention, mixture.maps, strict=bool(mixture.maps))
        ]
        if parts.outputs:
            handles += [module.register_forward_pre_hook(_keep_own_input) for module in self._ffn]
        if mixture.projected:
            given += [
                (module, MIXED, mixed) for module, mixed in zip(self._projections, mixture.projected, strict=True)
            ]
            handles += [module.register_forward_hook(_mix_output) for module in self._projections]
        if parts.projected:
            handles += [module.register_forward_hook(_keep_output) for module in self._projections]
        try:
            for module, name, value in given:
                setattr(module, name, value)
            output: Any = self._model(**inputs)
            if parts.hidden:
                output.hidden_states = tuple(states)
            for wanted, name, modules in (
                (parts.scores, "attentions", self._attention),
                (parts.outputs, "attention_outputs", self._ffn),
                (parts.projected, "attention_projected", self._projections),
            ):
                if wanted:
                    setattr(output, name, tuple(getattr(module, KEPT) for module in modules))
        finally:
            for handle in handles:
                handle.remove()
            for module, name, _ in given:
                setattr(module, name, None)
            for module in (*self._attention, *self._ffn, *self._projections):
                if KEPT in vars(module):
                    setattr(module, KEPT, None)
        return output


def _keep_input(states: list[Tensor]) -> Callable[..., None]:
    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states.append(args[0] if args else kwargs["hidden_states"])

    return keep


def _keep_own_input(module: nn.Module, args: tuple[Any, ...]) -> None:
    setattr(module, KEPT, args[0])


def _keep_output(module: nn.Module, _: Any, output: Tensor) -> None:
    setattr(module, KEPT, output)


def _mix_output(module: nn.Module, _: Any, output: Tensor) -> Tensor:
    mixed: Mixed = getattr(module, MIXED)
    return torch.lerp(output.float(), mixed.tensor.float(), mixed.weight).to(output.dtype)
