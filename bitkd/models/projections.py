"""Query, key and value projections of a forward pass, for losses that compare relations instead of heads."""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from bitkd.models.encoder import encoder_layers


class ProjectionRecorder:
    """Keeps the query, key and value projections of a model's last forward: `projections[layer]` is a triple of
    (batch, length, heads · head size).
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.projections: list[list[Tensor]] = [[] for _ in encoder_layers(model)]
        for i, layer in enumerate(encoder_layers(model)):
            block = layer.attention.self
            for name in ("query", "key", "value"):
                getattr(block, name).register_forward_hook(self._keeper(i, first=name == "query"))

    def _keeper(self, layer: int, first: bool) -> Any:
        def keep(_: nn.Module, __: Any, output: Tensor) -> None:
            if first:
                self.projections[layer] = []
            self.projections[layer].append(output)

        return keep
