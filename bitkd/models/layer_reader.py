"""Hidden states and attention scores of a forward pass, read in a way that torch.compile can follow."""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from bitkd.models.attention import KEEPS, KEPT
from bitkd.quant.layout import layers_of


class LayerReader:
    """Runs a model that uses `attention_with_scores`; the output has its `hidden_states` and `attentions`.

    They are those of `output_hidden_states=True` and `output_attentions=`. transformers collects these by hooks inside the
    layers, which cannot be compiled and would cut the graph of each layer into three. Here hidden states are read between
    the layers, and each attention module keeps its own scores.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        layers = layers_of(model)
        self._model: Any = model
        self._layers: list[nn.Module] = list(layers.modules)
        self._attention: list[Any] = layers.parts("attention")

    def run(self, hidden: bool, scores: bool | str, **inputs: Tensor) -> Any:
        """The model's output for `inputs`.

        hidden: read the hidden states.  scores: which scores, as `output_attentions` of `attention_with_scores`.
        """
        states: list[Tensor] = []
        handles = []
        if hidden:
            handles = [layer.register_forward_pre_hook(_keep_input(states), with_kwargs=True) for layer in self._layers]
            # Not the output of the last layer: some encoders normalize it.
            handles.append(self._model.base_model.register_forward_hook(lambda _, __, output: states.append(output[0])))
        if scores:
            for module in self._attention:
                setattr(module, KEEPS, scores)
        try:
            output: Any = self._model(**inputs)
            if hidden:
                output.hidden_states = tuple(states)
            if scores:
                output.attentions = tuple(getattr(module, KEPT) for module in self._attention)
        finally:
            for handle in handles:
                handle.remove()
            if scores:
                for module in self._attention:
                    setattr(module, KEEPS, False)
                    setattr(module, KEPT, None)
        return output


def _keep_input(states: list[Tensor]) -> Any:
    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states.append(args[0] if args else kwargs["hidden_states"])

    return keep
