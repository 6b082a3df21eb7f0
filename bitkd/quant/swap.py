"""Swap the leaf layers of an encoder for low-bit ones, and back.

These functions change layers only. `bitkd.prepare` records what was done in the model's configuration too, so that the
model can be saved and loaded: use that one.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from bitkd.errors import InputError
from bitkd.quant.inputs import AttentionQuantizer, FullPrecision, InputQuantizer, make_input_quantizer
from bitkd.quant.layout import Layers, layers_of, unsigned_linears
from bitkd.quant.modules import QuantEmbedding, QuantLinear, embedding_options
from bitkd.quant.pairs import SplitEmbedding, SplitLinear
from bitkd.quant.spec import QuantSpec
from bitkd.quant.table import FP32, HALF_BITS, TERNARY

ATTENTION_QUANTIZER = "activation_quantizer"
"""Name of the AttentionQuantizer in a self-attention module; absent if attention stays FP32."""

Child = tuple[nn.Module, str, nn.Module]
"""(parent, name, layer)"""


def swap_layers(model: Any, spec: QuantSpec) -> Any:
    """Quantize `model` in place as `spec` says, and return it; its Parameters stay the same objects.

    model: a Hugging Face encoder of a family in `bitkd.quant.layout`, bare or with a head. Quantized are the
    Linears of the encoder's layers, the word embeddings and, as an option, the pooler; the rest stays FP32. A quantized
    model can be quantized again: its latent weights are kept, and 32 bits restore the plain layers. Pairs of binary
    layers (see `bitkd.quant.splitting`) stay pairs.

    Raises InputError if the model has no such layers, or if `spec` gives pairs another width than 1 bit.
    """
    layers = layers_of(model)
    linears, embeddings, pooler = _leaves_of(model, layers)
    if spec.pooler and not pooler:
        raise InputError(f"pooler=True, but {type(model).__name__} has no pooler; use false")
    _refuse_rejoining(spec, [child for _, _, child in linears], embeddings, [child for _, _, child in pooler])

    unsigned = {id(child) for child in unsigned_linears(model, layers)}
    for parent, name, child in linears:
        setattr(parent, name, _linear(child, spec, id(child) not in unsigned))
    for parent, name, child in pooler:
        setattr(parent, name, _linear(child, spec if spec.pooler else QuantSpec()))
    model.set_input_embeddings(_embedding(embeddings, spec))
    for attention in layers.parts("attention"):
        _set_attention_quantizer(attention, spec.attention_bits)
    return model


def make_blank_pairs(model: nn.Module, names: Iterable[str]) -> None:
    """Replace binary layers of `model` by pairs of binary ones, all zeros, to load a split model's weights into.

    names: of QuantLinears and QuantEmbeddings, as in `named_modules`. Raises InputError if a layer is not binary.
    """
    for name in names:
        parent, _, leaf = name.rpartition(".")
        holder = model.get_submodule(parent)
        layer = getattr(holder, leaf, None)
        if isinstance(layer, QuantLinear) and layer.weight_bits == HALF_BITS:
            fields = ("activation_bits", "signed_input", "per_row", "column_scales", "learned_scales", "ste_clip")
            setattr(holder, leaf, SplitLinear.from_float(layer, **{key: getattr(layer, key) for key in fields}))
        elif isinstance(layer, QuantEmbedding) and layer.weight_bits == HALF_BITS:
            setattr(holder, leaf, SplitEmbedding.from_float(layer, ste_clip=layer.ste_clip))
        else:
            raise InputError(f"{name} cannot be a pair of {HALF_BITS}-bit layers: it is a {type(layer).__name__}")


def is_split(model: nn.Module) -> bool:
    """Whether `model` holds pairs of binary layers."""
    return any(isinstance(module, SplitLinear | SplitEmbedding) for module in model.modules())


def find_mismatch(model: Any, spec: QuantSpec) -> str | None:
    """The first part of an encoder that is not quantized as `spec` says, in words; None if all are."""
    layers = layers_of(model)
    linears, embeddings, pooler = _leaves_of(model, layers)
    plain, unsigned = QuantSpec(), {id(child) for child in unsigned_linears(model, layers)}
    expected = [
        *((f"an encoder layer's {name}", child, spec) for _, name, child in linears),
        *((f"pooler.{name}", child, spec if spec.pooler else plain) for _, name, child in pooler),
    ]
    for name, layer, wanted in expected:
        found = (_bits(layer, "weight_bits"), _bits(layer, "activation_bits"))
        if found != (wanted.weight_bits, wanted.activation_bits):
            return f"{name} is W{found[0]}A{found[1]}, not W{wanted.weight_bits}A{wanted.activation_bits}"
        signed = make_input_quantizer(wanted.activation_bits, signed=id(layer) not in unsigned).signed
        if getattr(layer, "signed_input", True) != signed:
            return f"{name} has signed_input={not signed}, not {signed}"
        of_linear = ("per_row", "column_scales", "learned_scales") if wanted.weight_bits < FP32 else ()
        for field in of_linear:
            if getattr(layer, field) != getattr(wanted, field):
                return f"{name} has {field}={getattr(layer, field)}, not {getattr(wanted, field)}"
        if wanted.weight_bits == TERNARY and layer.levels != wanted.levels:
            return f"{name} has {layer.levels} levels, not {wanted.levels}"
        if (clips := getattr(layer, "forward_clip", False)) != wanted.clips(wanted.weight_bits):
            return f"{name} has forward_clip={clips}, not {not clips}"
    if (bits := _bits(embeddings, "weight_bits")) != spec.resolved_embedding_bits:
        return f"the word embedding is {bits}-bit, not {spec.resolved_embedding_bits}-bit"
    if bits == TERNARY and embeddings.levels != spec.levels:
        return f"the word embedding has {embeddings.levels} levels, not {spec.levels}"
    for attention in layers.parts("attention"):
        if (bits := getattr(getattr(attention, ATTENTION_QUANTIZER, None), "bits", FP32)) != spec.attention_bits:
            return f"attention is {bits}-bit, not {spec.attention_bits}-bit"
    return None


@contextmanager
def unquantized_activations(model: nn.Module) -> Iterator[None]:
    """Within this context all activations of `model` stay FP32; weights stay quantized."""
    quantizers = [
        (parent, name, child)
        for parent in list(model.modules())
        for name, child in parent.named_children()
        if isinstance(child, InputQuantizer)
    ]
    try:
        for parent, name, _ in quantizers:
            setattr(parent, name, FullPrecision())
        yield
    finally:
        for parent, name, child in quantizers:
            setattr(parent, name, child)


def _leaves_of(model: Any, layers: Layers) -> tuple[list[Child], nn.Module, list[Child]]:
    """The Linears of the layers, the word embedding and the pooler's Linears; a pair counts as one layer."""
    pooler = getattr(getattr(model, "base_model", model), "pooler", None)
    linears = [child for layer in layers.modules for child in _linear_children(layer)]
    return linears, model.get_input_embeddings(), [*_linear_children(pooler or nn.Module())]


def _linear_children(root: nn.Module) -> Iterator[Child]:
    """Every Linear below `root`; a pair counts as one layer."""
    for name, child in root.named_children():
        if isinstance(child, nn.Linear | SplitLinear):
            yield root, name, child
        else:
            yield from _linear_children(child)


def _bits(layer: nn.Module, name: str) -> Any:
    return getattr(layer, name, FP32)


def _refuse_rejoining(
    spec: QuantSpec, linears: list[nn.Module], embeddings: nn.Module, pooler: list[nn.Module]
) -> None:
    """Raise InputError if `spec` gives split layers another width than 1 bit."""
    for name, asked, modules in (
        ("weight_bits", spec.weight_bits, linears),
        ("embedding_bits", spec.resolved_embedding_bits, [embeddings]),
        ("pooler bits", spec.weight_bits if spec.pooler else FP32, pooler),
    ):
        if asked != HALF_BITS and any(is_split(module) for module in modules):
            raise InputError(
                f"{name}={asked} does not fit a split model: its halves are binary and stay binary; use 1 bit"
            )


def _linear(module: Any, spec: QuantSpec, signed_input: bool = True) -> nn.Module:
    names = ("activation_bits", "per_row", "column_scales", "learned_scales", "ste_clip")
    settings: dict[str, Any] = {name: getattr(spec, name) for name in names} | {"signed_input": signed_input}
    if isinstance(module, SplitLinear):
        return SplitLinear.from_pair(module, **settings)
    if spec.weight_bits < FP32 or spec.activation_bits < FP32:
        settings |= {"weight_bits": spec.weight_bits, "levels": spec.levels}
        return QuantLinear.from_float(module, forward_clip=spec.clips(spec.weight_bits), **settings)
    if type(module) is nn.Linear:
        return module
    plain = nn.Linear(module.in_features, module.out_features, module.bias is not None, device="meta")
    plain.weight, plain.bias = module.weight, module.bias
    return plain.train(module.training)


def _embedding(module: Any, spec: QuantSpec) -> nn.Module:
    if isinstance(module, SplitEmbedding):
        for half in (module.first, module.second):
            half.ste_clip = spec.ste_clip
        return module
    if (bits := spec.resolved_embedding_bits) < FP32:
        settings = {"ste_clip": spec.ste_clip, "forward_clip": spec.clips(bits), "levels": spec.levels}
        return QuantEmbedding.from_float(module, weight_bits=bits, **settings)
    if type(module) is nn.Embedding:
        return module
    plain = nn.Embedding(**embedding_options(module), device="meta")
    plain.weight = module.weight
    return plain.train(module.training)


def _set_attention_quantizer(attention: nn.Module, bits: int) -> None:
    """Put an AttentionQuantizer into a self-attention module, where `bitkd.models.attention` finds it."""
    old = getattr(attention, ATTENTION_QUANTIZER, None)
    if bits == FP32:
        if old is not None:
            delattr(attention, ATTENTION_QUANTIZER)
    elif old is None or old.bits != bits:
        setattr(attention, ATTENTION_QUANTIZER, AttentionQuantizer(bits).to(next(attention.parameters()).device))
