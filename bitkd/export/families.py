"""The families of classifiers as ONNX graphs: embeddings, layers and head of each, as transformers computes them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from transformers import PreTrainedModel
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from bitkd.errors import InputError
from bitkd.export.graph import MASKED, Graph
from bitkd.models.attention import KEPT_HEADS
from bitkd.models.encoder import read_spec
from bitkd.models.inputs import reads_token_types
from bitkd.quant.layout import Layers, layers_of
from bitkd.quant.swap import ATTENTION_QUANTIZER

IDS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"


def inputs_of(model: PreTrainedModel) -> list[str]:
    """Names of the graph's inputs."""
    return [IDS, MASK, *([TYPES] if reads_token_types(model.config) else [])]


def classifier_logits(graph: Graph, model: PreTrainedModel) -> str:
    """The logits of a classifier, (batch, labels). Raises InputError if its family has no graph here."""
    name = type(model).__name__
    if name not in FAMILIES:
        known = ", ".join(name.removesuffix(_END) for name in FAMILIES)
        raise InputError(f"{name} has no ONNX form here; classifiers of these families have one: {known}")
    family = FAMILIES[name]
    if getattr(model.config, "is_decoder", False):
        raise InputError(f"{name} is a decoder, whose attention has no ONNX form here; use an encoder")
    build = _Build(graph, model)
    return family.head(build, family.layers(build, family.embeddings(build)))


class _Build:
    """A classifier whose graph is being built."""

    def __init__(self, graph: Graph, model: Any) -> None:
        self.graph = graph
        self.model = model
        self.encoder: Any = model.base_model
        self.config: Any = model.config
        self.layers: Layers = layers_of(model)
        self.length = graph.op("Gather", graph.op("Shape", IDS), graph.constant(1, np.int64))
        self.positions = graph.range(self.length)
        self.head_size = read_spec(model).head_size

    def distances(self) -> str:
        """key - query of each pair of positions, int64, (length, length)."""
        graph = self.graph
        return graph.op("Sub", graph.unsqueeze(self.positions, 0), graph.unsqueeze(self.positions, 1))

    def distance_table(self, table: torch.Tensor) -> str:
        """Values by distance, (length, length, …).  table: for the distances from 1 - positions on."""
        graph = self.graph
        place = graph.op("Add", self.distances(), graph.constant(self.config.max_position_embeddings - 1, np.int64))
        return graph.op("Gather", graph.constant(table), place)

    def all_distances(self) -> torch.Tensor:
        """Every distance of two positions, in order."""
        last = self.config.max_position_embeddings
        return torch.arange(1 - last, last)

    def mask(self) -> str:
        """What is added to scores: 0, and MASKED for keys that are padding; (batch, 1, 1, length)."""
        graph = self.graph
        keys = graph.cast(graph.unsqueeze(MASK, 1, 2), TensorProto.BOOL)
        return graph.op("Where", keys, graph.constant(0, np.float32), graph.constant(MASKED, np.float32))

    def first_token(self, x: str) -> str:
        """(batch, hidden)"""
        return self.graph.op("Gather", x, self.graph.constant(0, np.int64), axis=1)


# Embeddings


def _bert_embeddings(build: _Build) -> str:
    graph, own = build.graph, build.encoder.embeddings
    x = graph.embedding(own.word_embeddings, IDS)
    x = graph.op("Add", x, _token_types(build))
    x = graph.op("Add", x, graph.embedding(own.position_embeddings, _position_numbers(build)))
    x = graph.norm(own.LayerNorm, x)
    project = getattr(build.encoder, "embeddings_project", None)  # ELECTRA
    return x if project is None else graph.linear(project, x)


def _token_types(build: _Build) -> str:
    rows = TYPES if reads_token_types(build.config) else build.graph.constant(0, np.int64)
    return build.graph.embedding(build.encoder.embeddings.token_type_embeddings, rows)


def _position_numbers(build: _Build) -> str:
    """Rows of the table of positions. RoBERTa and its like count the tokens that are no padding, behind the padding's row."""
    graph, padding = build.graph, build.encoder.embeddings.position_embeddings.padding_idx
    if padding is None:
        return build.positions
    first = graph.constant(padding, np.int64)
    tokens = graph.cast(graph.op("Not", graph.op("Equal", IDS, first)), TensorProto.INT64)
    counted = graph.op("Mul", graph.op("CumSum", tokens, graph.constant(1, np.int64)), tokens)
    return graph.op("Add", counted, first)


def _plain_embeddings(build: _Build) -> str:
    """Words and positions: MPNet and DistilBERT."""
    graph, own = build.graph, build.encoder.embeddings
    x = graph.embedding(own.word_embeddings, IDS)
    x = graph.op("Add", x, graph.embedding(own.position_embeddings, _position_numbers(build)))
    return graph.norm(own.LayerNorm, x)


def _deberta_embeddings(build: _Build) -> str:
    graph, own = build.graph, build.encoder.embeddings
    x = graph.embedding(own.word_embeddings, IDS)
    if own.position_biased_input:
        x = graph.op("Add", x, graph.embedding(own.position_embeddings, build.positions))
    if own.token_type_embeddings is not None:
        x = graph.op("Add", x, _token_types(build))
    if own.embed_proj is not None:
        x = graph.linear(own.embed_proj, x)
    return graph.op("Mul", graph.norm(own.LayerNorm, x), graph.unsqueeze(graph.cast(MASK, TensorProto.FLOAT), 2))


def _modernbert_embeddings(build: _Build) -> str:
    own = build.encoder.embeddings
    return build.graph.norm(own.norm, build.graph.embedding(own.tok_embeddings, IDS))


# Layers

Bias = Callable[[_Build, int, str, str], str | None]
"""(build, number of the layer, queries, keys) -> what is added to its scores."""


def _no_bias(build: _Build, number: int, query: str, key: str) -> None:
    return None


def _bert_layers(build: _Build, x: str, bias: Bias = _no_bias, parts: int = 1) -> str:
    """Layers with LayerNorm behind attention and FFN.  parts: sums of products that a score is the scaled sum of."""
    graph, layers = build.graph, build.layers
    after_attention, after_ffn = _NORMS[layers.layout.family]
    act = build.config.activation if layers.layout.family == "DistilBERT" else build.config.hidden_act
    mask, scaling = build.mask(), (parts * build.head_size) ** -0.5
    names = ("attention", "query", "key", "value", "attention_output", "up", "down")
    for number, (layer, *modules) in enumerate(
        zip(layers.modules, *(layers.parts(name) for name in names), strict=True)
    ):
        attention, query, key, value, output, up, down = modules
        q, k, v = (graph.split_heads(graph.linear(module, x), build.head_size) for module in (query, key, value))
        quantizer = getattr(attention, ATTENTION_QUANTIZER, None)
        context = graph.attention(q, k, v, mask, scaling, quantizer, bias(build, number, q, k))
        x = graph.op("Add", graph.linear(output, context), x)
        x = graph.norm(layer.get_submodule(after_attention), x)
        neurons = graph.activation(graph.linear(up, x), act)
        x = graph.norm(layer.get_submodule(after_ffn), graph.op("Add", graph.linear(down, neurons), x))
    return x


_NORMS = {
    "BERT": ("attention.output.LayerNorm", "output.LayerNorm"),
    "DeBERTa-v2": ("attention.output.LayerNorm", "output.LayerNorm"),
    "MPNet": ("attention.LayerNorm", "output.LayerNorm"),
    "DistilBERT": ("sa_layer_norm", "output_layer_norm"),
}
"""Paths of the LayerNorms behind attention and FFN, from the layer."""


def _mpnet_layers(build: _Build, x: str) -> str:
    graph, encoder = build.graph, build.encoder.encoder
    buckets = encoder.relative_position_bucket(build.all_distances())
    table = encoder.relative_attention_bias(buckets).detach()
    shared = graph.unsqueeze(graph.op("Transpose", build.distance_table(table), perm=[2, 0, 1]), 0)

    def bias(build: _Build, number: int, query: str, key: str) -> str:
        heads = getattr(build.layers.parts("attention")[number], KEPT_HEADS, None)
        return shared if heads is None else graph.op("Gather", shared, graph.constant(heads, np.int64), axis=1)

    return _bert_layers(build, x, bias)


def _deberta_layers(build: _Build, x: str) -> str:
    graph, encoder = build.graph, build.encoder.encoder
    if encoder.conv is not None:
        raise InputError(
            "DeBERTa-v2 with a convolution (conv_kernel_size) has no ONNX form here; use another checkpoint"
        )
    modules = build.layers.parts("attention")
    if not encoder.relative_attention:
        return _bert_layers(build, x, parts=_score_parts(modules[0]))
    rows = graph.floats(encoder.rel_embeddings.weight)
    if "layer_norm" in encoder.norm_rel_ebd:
        rows = graph.norm(encoder.LayerNorm, rows)
    rows = graph.unsqueeze(rows, 0)
    span = modules[0].pos_ebd_size
    buckets = _deberta_buckets(build, modules[0])
    places = {
        kind: build.distance_table((sign * buckets + span).clamp(0, 2 * span - 1))
        for kind, sign in (("c2p", 1), ("p2c", -1))
    }

    def bias(build: _Build, number: int, query: str, key: str) -> str | None:
        own, total = modules[number], None
        scale = math.sqrt(_score_parts(own) * build.head_size)
        length = graph.unsqueeze(build.length, 0)
        shape = graph.op("Concat", graph.op("Shape", query, start=0, end=2), length, length, axis=0)
        for kind, content, projection in (
            ("c2p", query, own.key_proj if own.share_att_key else getattr(own, "pos_key_proj", None)),
            ("p2c", key, own.query_proj if own.share_att_key else getattr(own, "pos_query_proj", None)),
        ):
            if kind not in own.pos_att_type:
                continue
            relative = graph.split_heads(graph.linear(projection, rows), build.head_size)
            products = graph.op("MatMul", content, graph.op("Transpose", relative, perm=[0, 1, 3, 2]))
            index = graph.op("Expand", places[kind], shape)
            part = graph.op("GatherElements", products, index, axis=3)
            if kind == "p2c":
                part = graph.op("Transpose", part, perm=[0, 1, 3, 2])
            part = graph.scaled(part, 1 / scale)
            total = part if total is None else graph.op("Add", total, part)
        return total

    return _bert_layers(build, x, bias, parts=_score_parts(modules[0]))


def _score_parts(attention: Any) -> int:
    return 1 + sum(kind in attention.pos_att_type for kind in ("c2p", "p2c"))


def _deberta_buckets(build: _Build, attention: Any) -> torch.Tensor:
    """The relative position of each distance of two positions (key - query), int64."""
    behind = -build.all_distances()
    if attention.position_buckets > 0:
        behind = make_log_bucket_position(behind, attention.position_buckets, attention.max_relative_positions)
    return behind.long()


def _modernbert_layers(build: _Build, x: str) -> str:
    graph, layers, encoder = build.graph, build.layers, build.encoder
    masks, rotations = _modernbert_masks(build), {}
    for kind in sorted(set(build.config.layer_types)):
        rotations[kind] = _rotation(build, kind)
    names = ("attention", "query", "attention_output", "up", "down")
    for layer, attention, fused, output, up, down in zip(
        layers.modules, *(layers.parts(name) for name in names), strict=True
    ):
        kind = layer.attention_type
        projected = graph.ops("Split", 3, graph.linear(fused, graph.norm(layer.attn_norm, x)), axis=-1, num_outputs=3)
        q, k, v = (graph.split_heads(part, build.head_size) for part in projected)
        q, k = (_rotate(graph, part, *rotations[kind]) for part in (q, k))
        quantizer = getattr(attention, ATTENTION_QUANTIZER, None)
        context = graph.attention(q, k, v, masks[kind], build.head_size**-0.5, quantizer)
        x = graph.op("Add", x, graph.linear(output, context))
        first, gate = graph.ops("Split", 2, graph.linear(up, graph.norm(layer.mlp_norm, x)), axis=-1, num_outputs=2)
        neurons = graph.op("Mul", graph.activation(first, build.config.hidden_activation), gate)
        x = graph.op("Add", x, graph.linear(down, neurons))
    return graph.norm(encoder.final_norm, x)


def _modernbert_masks(build: _Build) -> dict[str, str]:
    graph, full = build.graph, build.mask()
    window = graph.constant(build.config.sliding_window, np.int64)
    near = graph.op("LessOrEqual", graph.op("Abs", build.distances()), window)
    local = graph.op("Where", near, full, graph.constant(MASKED, np.float32))
    return {"full_attention": full, "sliding_attention": local}


def _rotation(build: _Build, kind: str) -> tuple[str, str]:
    """Cosines and sines of each position, (length, head size)."""
    graph, rotary = build.graph, build.encoder.rotary_emb
    if (found := rotary.rope_type[kind]) != "default":
        raise InputError(
            f"ModernBERT with rotary positions of type {found} has no ONNX form here; it has with default ones"
        )
    places = graph.unsqueeze(graph.cast(build.positions, TensorProto.FLOAT), 1)
    angles = graph.op("Mul", places, graph.constant(getattr(rotary, f"{kind}_inv_freq")))
    both = graph.op("Concat", angles, angles, axis=-1)
    factor = getattr(rotary, f"{kind}_attention_scaling")
    cosines, sines = (graph.scaled(graph.op(name, both), factor) for name in ("Cos", "Sin"))
    return cosines, sines


def _rotate(graph: Graph, x: str, cosines: str, sines: str) -> str:
    first, second = graph.ops("Split", 2, x, axis=-1, num_outputs=2)
    half = graph.op("Concat", graph.op("Neg", second), first, axis=-1)
    return graph.op("Add", graph.op("Mul", x, cosines), graph.op("Mul", half, sines))


# Heads


def _pooled_head(build: _Build, x: str) -> str:
    """BERT."""
    pooled = build.graph.linear(build.encoder.pooler.dense, build.first_token(x))
    return build.graph.linear(build.model.classifier, build.graph.op("Tanh", pooled))


def _dense_head(activation: str) -> Callable[[_Build, str], str]:
    """RoBERTa, MPNet, ELECTRA."""

    def head(build: _Build, x: str) -> str:
        graph, own = build.graph, build.model.classifier
        return graph.linear(own.out_proj, graph.activation(graph.linear(own.dense, build.first_token(x)), activation))

    return head


def _distilbert_head(build: _Build, x: str) -> str:
    graph, model = build.graph, build.model
    return graph.linear(model.classifier, graph.op("Relu", graph.linear(model.pre_classifier, build.first_token(x))))


def _deberta_head(build: _Build, x: str) -> str:
    graph, model = build.graph, build.model
    pooled = graph.linear(model.pooler.dense, build.first_token(x))
    return graph.linear(model.classifier, graph.activation(pooled, build.config.pooler_hidden_act))


def _modernbert_head(build: _Build, x: str) -> str:
    graph, own = build.graph, build.model.head
    if build.config.classifier_pooling == "mean":
        mask = graph.unsqueeze(graph.cast(MASK, TensorProto.FLOAT), 2)
        total = graph.op("ReduceSum", graph.op("Mul", x, mask), graph.constant([1], np.int64), keepdims=0)
        x = graph.op("Div", total, graph.op("ReduceSum", mask, graph.constant([1], np.int64), keepdims=0))
    else:
        x = build.first_token(x)
    x = graph.norm(own.norm, graph.activation(graph.linear(own.dense, x), build.config.classifier_activation))
    return graph.linear(build.model.classifier, x)


@dataclass(frozen=True)
class Family:
    """How the classifiers of a family become a graph."""

    embeddings: Callable[[_Build], str]
    layers: Callable[[_Build, str], str]
    head: Callable[[_Build, str], str]


_END = "ForSequenceClassification"

_ROBERTA = Family(_bert_embeddings, _bert_layers, _dense_head("tanh"))

FAMILIES = {
    f"{name}{_END}": family
    for name, family in {
        "Bert": Family(_bert_embeddings, _bert_layers, _pooled_head),
        "Roberta": _ROBERTA,
        "XLMRoberta": _ROBERTA,
        "Camembert": _ROBERTA,
        "Electra": Family(_bert_embeddings, _bert_layers, _dense_head("gelu")),
        "DistilBert": Family(_plain_embeddings, _bert_layers, _distilbert_head),
        "MPNet": Family(_plain_embeddings, _mpnet_layers, _dense_head("tanh")),
        "DebertaV2": Family(_deberta_embeddings, _deberta_layers, _deberta_head),
        "ModernBert": Family(_modernbert_embeddings, _modernbert_layers, _modernbert_head),
    }.items()
}
"""By class. To add a family, add a row."""
