"""Query, key and value projections of a forward pass, for losses that compare relations instead of heads."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from bitkd.models.encoder import encoder_layers


class ProjectionRecorder:
    """Records the query, key and value projections of a model's last forward pass."""

    projections: list[list[Tensor]]
    """projections[layer]: query, key and value, each (batch, length, heads · head size)."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.projections = [[] for _ in encoder_layers(model)]
        for i, layer in enumerate(encoder_layers(model)):
            block = layer.attention.self
            for name in ("query", "key", "value"):
                getattr(block, name).register_forward_hook(self._recorder(i, first=name == "query"))

    def _recorder(self, layer: int, first: bool) -> Callable[[nn.Module, Any, Tensor], None]:
        def record(_: nn.Module, __: Any, output: Tensor) -> None:
            if first:
                self.projections[layer] = []
            self.projections[layer].append(output)

        return record
