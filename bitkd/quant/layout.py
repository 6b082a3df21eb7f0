"""Where an encoder keeps its layers, and a layer its projections: the one place that knows the names of their modules."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from bitkd.errors import InputError
from bitkd.quant.int8 import Int8Embedding
from bitkd.quant.modules import SplitLinear
from bitkd.quant.packed import PackedLinear


@dataclass(frozen=True)
class Layout:
    """Paths of modules in a family of encoders; those of a layer begin at the layer."""

    family: str
    """Its name in messages."""

    layers: str
    """The ModuleList of the encoder's layers, from the bare model."""

    attention: str
    """The module that computes attention."""

    query: str
    key: str
    value: str
    """The Linears of queries, keys and values. One path for all three: a fused Linear, queries first."""

    attention_output: str
    """The Linear behind attention."""

    up: str
    """The FFN's first Linear."""

    down: str
    """The FFN's second Linear."""

    gated: bool = False
    """Whether `up` gives twice the neurons: those that the activation reads, then those that multiply it (GLU,
    arXiv:2002.05202)."""

    first_lacks: str | None = None
    """A LayerNorm that every layer has but the first."""

    norm_like: str = ""
    """A LayerNorm of the same shape, which every layer has."""

    @property
    def projections(self) -> tuple[str, str, str]:
        """The paths of the Linears of queries, keys and values."""
        return self.query, self.key, self.value

    @property
    def fused(self) -> bool:
        """Whether one Linear gives queries, keys and values."""
        return self.query == self.key == self.value


def _bert_ffn(family: str, attention: str, projections: str, output: str) -> Layout:
    query, key, value = (f"{attention}.{name}" for name in projections.split())
    return Layout(family, "encoder.layer", attention, query, key, value, output, "intermediate.dense", "output.dense")


LAYOUTS: list[Layout] = [
    _bert_ffn("BERT", "attention.self", "query key value", "attention.output.dense"),
    _bert_ffn("DeBERTa-v2", "attention.self", "query_proj key_proj value_proj", "attention.output.dense"),
    _bert_ffn("MPNet", "attention.attn", "q k v", "attention.attn.o"),
    Layout(
        "DistilBERT",
        layers="transformer.layer",
        attention="attention",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        attention_output="attention.out_lin",
        up="ffn.lin1",
        down="ffn.lin2",
    ),
    Layout(
        "ModernBERT",
        layers="layers",
        attention="attn",
        query="attn.Wqkv",
        key="attn.Wqkv",
        value="attn.Wqkv",
        attention_output="attn.Wo",
        up="mlp.Wi",
        down="mlp.Wo",
        gated=True,
        first_lacks="attn_norm",
        norm_like="mlp_norm",
    ),
]
"""To add a family, add a row. RoBERTa, XLM-R, ELECTRA and others have BERT's layout."""


HIDDEN_ACT = ("hidden_act", "activation", "hidden_activation")
"""What families call the FFN's activation function in their configuration."""


@dataclass(frozen=True)
class Layers:
    """The layers of an encoder."""

    layout: Layout
    modules: Sequence[Any]

    def parts(self, name: str) -> list[Any]:
        """The module of each layer at the layout's path `name`, such as "query"."""
        return [layer.get_submodule(getattr(self.layout, name)) for layer in self.modules]


def unsigned_linears(model: Any, layers: Layers) -> list[Any]:
    """The Linears of an encoder whose input has no negative values: the FFN's second ones behind a ReLU."""
    config = getattr(model, "config", None)
    act = next((found for name in HIDDEN_ACT if isinstance(found := getattr(config, name, None), str)), None)
    return layers.parts("down") if act == "relu" and not layers.layout.gated else []


def find_layers(model: Any) -> Layers | None:
    """The layers of an encoder, bare or with a head; None if no layout fits it."""
    bare = getattr(model, "base_model", model)
    for layout in LAYOUTS:
        layers = _find(bare, layout.layers)
        if isinstance(layers, nn.ModuleList) and len(layers) and all(_fits(layout, layer) for layer in layers):
            return Layers(layout, list(layers))
    return None


def layers_of(model: Any) -> Layers:
    """The layers of an encoder, bare or with a head. Raises InputError if no layout fits it."""
    found = find_layers(model)
    if found is None:
        families = [layout.family for layout in LAYOUTS]
        raise InputError(
            f"{type(model).__name__} does not keep its layers as {', '.join(families[:-1])} or {families[-1]} do, so bitkd "
            "cannot choose and quantize them (layers that share one set of weights, as ALBERT's, are no such layers); use an "
            "encoder of one of these families"
        )
    return found


@dataclass(frozen=True)
class InputLimits:
    """What a model's tables of embeddings can read."""

    positions: int
    """Tokens of a row; 0 if the configuration has no such limit."""

    token_types: int
    """Kinds of sentences that it tells apart; 0 if it has no such table."""


def input_limits(model: Any) -> InputLimits:
    """The limits of an encoder, bare or with a head."""
    positions, token_types = int(getattr(model.config, "max_position_embeddings", None) or 0), 0
    for name, table in model.named_modules():
        kind = name.rpartition(".")[2]
        if isinstance(table, nn.Embedding | Int8Embedding) and kind == "position_embeddings":
            # RoBERTa and its like number the first token behind the padding's row.
            positions = table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
        elif isinstance(table, nn.Embedding) and kind == "token_type_embeddings":
            token_types = table.num_embeddings
    return InputLimits(positions, token_types)


def _fits(layout: Layout, layer: nn.Module) -> bool:
    paths = (*layout.projections, layout.attention_output, layout.up, layout.down)
    return all(isinstance(_find(layer, path), nn.Linear | SplitLinear | PackedLinear) for path in paths)


def _find(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name, None)
    return module
