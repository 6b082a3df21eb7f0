"""Which packed models the engine runs."""

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    BaseModelOutputWithPoolingAndCrossAttentions,
)

from bitkd.engine.native import ACTIVATIONS
from bitkd.quant.inputs import PerToken
from bitkd.quant.layout import Layers, find_layers
from bitkd.quant.packed import PackedLinear
from bitkd.quant.packing import BITS, FOUR_LEVELS, TRITS, TWO_BITS
from bitkd.quant.swap import ATTENTION_QUANTIZER

PACKINGS = (BITS, TWO_BITS, TRITS, FOUR_LEVELS)
"""How the weights may be packed that the engine multiplies."""

LINEARS = ("query", "key", "value", "attention_output", "up", "down")
"""The Linears of a layer, by their names in `bitkd.quant.layout.Layout`."""

INPUT_BITS = 8
"""Bits of the activations that the engine multiplies."""


@dataclass(frozen=True)
class Family:
    """What the engine has to know of a class of bare encoders."""

    arguments: tuple[str, ...]
    """What its embeddings and its mask read, in the order of its `forward`."""

    norms: tuple[str, str]
    """The LayerNorms behind attention and behind the FFN, from the layer."""

    activation: str
    """The hidden activation's name in the configuration."""

    output: type[Any]
    """The class of what it returns."""


_BERT = Family(
    ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds"),
    ("attention.output.LayerNorm", "output.LayerNorm"),
    "hidden_act",
    BaseModelOutputWithPoolingAndCrossAttentions,
)
FAMILIES = {
    "BertModel": _BERT,
    "RobertaModel": _BERT,
    "XLMRobertaModel": _BERT,
    "CamembertModel": _BERT,
    "ElectraModel": Family(_BERT.arguments, _BERT.norms, "hidden_act", BaseModelOutputWithPastAndCrossAttentions),
    "DistilBertModel": Family(
        ("input_ids", "attention_mask", "inputs_embeds", "position_ids"),
        ("sa_layer_norm", "output_layer_norm"),
        "activation",
        BaseModelOutput,
    ),
}
"""Classes of bare encoders that the engine runs: LayerNorm behind each half of a layer, and positions added to the embeddings."""


def find_obstacle(model: PreTrainedModel, on_gpu: bool = False) -> str | None:
    """Why the engine cannot run the layers of a model, in words; None if it can.

    on_gpu: ask for a GPU, whose kernels do not multiply by scales of columns.
    """
    base, layers = model.base_model, find_layers(model)
    family = FAMILIES.get(type(base).__name__)
    if family is None or layers is None:
        return f"it is a {type(base).__name__}, which is none of {', '.join(FAMILIES)}"
    if getattr(base.config, "is_decoder", False):
        return "it is a decoder"
    activation = getattr(base.config, family.activation)
    if activation not in ACTIVATIONS:
        return f"its hidden activation is {activation}, which is none of {', '.join(ACTIVATIONS)}"
    for name in LINEARS:
        for linear in layers.parts(name):
            if not isinstance(linear, PackedLinear):
                return f"the Linear {getattr(layers.layout, name)} of a layer is not packed"
            if linear.packing not in PACKINGS:
                return f"the weights of {getattr(layers.layout, name)} are packed as {linear.packing.name}"
            if on_gpu and linear.column_scale is not None:
                return f"{getattr(layers.layout, name)} has scales of columns"
            if not _is_known(linear.input_quantizer):
                return f"the input of {getattr(layers.layout, name)} is not quantized to {INPUT_BITS} bits per token"
    quantizers = [getattr(attention, ATTENTION_QUANTIZER, None) for attention in layers.parts("attention")]
    if not all(q is None or all(map(_is_known, q.children())) for q in quantizers):
        return f"its attention is quantized otherwise than to {INPUT_BITS} bits per token"
    norms = norms_of(layers, family)
    if any(type(norm) is not nn.LayerNorm or norm.weight is None or norm.bias is None for norm in norms):
        return "its layers have other norms than LayerNorm"
    query, up = layers.parts("query")[0], layers.parts("up")[0]
    hidden, width, neurons = query.in_features, query.out_features, up.out_features
    sizes = [(hidden, width)] * 3 + [(width, hidden), (hidden, neurons), (neurons, hidden)]
    fit = all(
        {(linear.in_features, linear.out_features) for linear in layers.parts(name)} == {size}
        for name, size in zip(LINEARS, sizes, strict=True)
    )
    head_sizes = {attention.attention_head_size for attention in layers.parts("attention")}
    alike = [head_sizes, {q is None for q in quantizers}, {(norm.eps, *norm.weight.shape) for norm in norms}]
    if (
        not fit
        or any(len(values) > 1 for values in alike)
        or width % head_sizes.pop()
        or norms[0].weight.numel() != hidden
    ):
        return "its layers differ in shape"
    return None


def _is_known(quantizer: nn.Module) -> bool:
    return type(quantizer) is PerToken and quantizer.bits == INPUT_BITS


def norms_of(layers: Layers, family: Family) -> list[Any]:
    """The LayerNorms of all layers, two of each."""
    return [layer.get_submodule(path) for layer in layers.modules for path in family.norms]
