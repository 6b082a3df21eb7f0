"""Query, key and value projections of a forward pass, for losses that compare relations instead of heads."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from bitkd.quant.layout import layers_of


class ProjectionRecorder:
    """Records the query, key and value projections of a model's last forward pass."""

    projections: list[list[Tensor]]
    """projections[layer]: query, key and value, each (batch, length, heads · head size)."""

    def __init__(self, model: PreTrainedModel) -> None:
        layers = layers_of(model)
        layout = layers.layout
        self.projections = [[] for _ in layers.modules]
        for i, layer in enumerate(layers.modules):
            for path in dict.fromkeys(layout.projections):
                first, parts = path == layout.query, 3 if layout.fused else 1
                layer.get_submodule(path).register_forward_hook(self._recorder(i, first, parts))

    def _recorder(self, layer: int, first: bool, parts: int) -> Callable[[nn.Module, Any, Tensor], None]:
        def record(_: nn.Module, __: Any, output: Tensor) -> None:
            if first:
                self.projections[layer] = []
            self.projections[layer].extend(output.chunk(parts, dim=-1))

        return record
