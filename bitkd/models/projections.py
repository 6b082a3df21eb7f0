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
        for found, layer, attention in zip(self.projections, layers.modules, layers.parts("attention")):
            attention.register_forward_pre_hook(_forget(found))
            for path in dict.fromkeys(layout.projections):
                layer.get_submodule(path).register_forward_hook(_record(found, 3 if layout.fused else 1))


def _forget(found: list[Tensor]) -> Callable[[nn.Module, Any], None]:
    return lambda _, __: found.clear()


def _record(found: list[Tensor], parts: int) -> Callable[[nn.Module, Any, Tensor], None]:
    def record(_: nn.Module, __: Any, output: Tensor) -> None:
        # DeBERTa projects its relative positions by the same Linears, after the tokens.
        if len(found) < 3:
            found.extend(output.chunk(parts, dim=-1))

    return record
