"""Swap the leaf layers of a BERT-shaped model for low-bit ones, and back."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from bitkd.errors import InputError
from bitkd.quant.modules import QuantEmbedding, QuantLinear, SplitEmbedding, SplitLinear, embedding_options
from bitkd.quant.spec import QuantSpec


def prepare(model: Any, spec: QuantSpec, split: bool = False) -> Any:
    """Quantize `model` in place as `spec` says, and return it; its Parameters stay the same objects.

    model: a Hugging Face encoder of BERT's shape (BERT, RoBERTa, ELECTRA), bare or with a head. Quantized are
    the Linears of the encoder's layers, the word embeddings and, as an option, the pooler; the rest stays
    FP32. A prepared model can be prepared again: its latent weights are kept, and 32 bits give the plain
    layers back.

    split: build pairs of binary layers (see `bitkd.quant.splitting`), all zeros, to load a split model's
    weights into.
    """
    base = getattr(model, "base_model", model)
    layers = getattr(getattr(base, "encoder", None), "layer", None) or nn.ModuleList()
    linears = [*_linear_children(layers)]
    if not linears:
        raise InputError(
            f"{type(model).__name__} has no Linear in encoder.layer; use a BERT-shaped encoder (BERT, RoBERTa, ELECTRA)"
        )
    words = model.get_input_embeddings()
    pooler = [*_linear_children(getattr(base, "pooler", None) or nn.Module())]
    if spec.pooler and not pooler:
        raise InputError(f"pooler=True, but {type(model).__name__} has no pooler; use false (see QuantSpec.pooler)")
    if split and spec.weight_bits != 1:
        raise InputError(f"weight_bits={spec.weight_bits} does not fit a split model, whose halves are binary; use 1")
    _refuse_rejoining(spec, [child for _, _, child in linears], words, [child for _, _, child in pooler])

    for parent, name, child in linears:
        setattr(parent, name, _linear(child, spec, split))
    for parent, name, child in pooler:
        setattr(parent, name, _linear(child, spec if spec.pooler else QuantSpec(), split and spec.pooler))
    model.set_input_embeddings(_embedding(words, spec, split))
    for module in layers.modules():
        if {"query", "key", "value"} <= dict(module.named_children()).keys():
            module.activation_bits = spec.activation_bits if spec.attention_activations else 32
    return model


def _linear_children(root: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """(parent, name, layer) of every Linear below `root`; a split pair counts as one layer."""
    for name, child in root.named_children():
        if isinstance(child, nn.Linear | SplitLinear):
            yield root, name, child
        else:
            yield from _linear_children(child)


def _refuse_rejoining(spec: QuantSpec, linears: list[nn.Module], words: nn.Module, pooler: list[nn.Module]) -> None:
    """Raise InputError where `spec` asks for other than 1 bit of layers that are split."""

    def is_split(modules: list[nn.Module]) -> bool:
        return any(isinstance(module, SplitLinear | SplitEmbedding) for module in modules)

    for name, asked, modules in (
        ("weight_bits", spec.weight_bits, linears),
        ("embedding_bits", spec.word_bits, [words]),
        ("pooler bits", spec.weight_bits if spec.pooler else 32, pooler),
    ):
        if asked != 1 and is_split(modules):
            raise InputError(f"{name}={asked} does not fit a split model: its halves are binary and stay so; use 1 bit")


def _linear(module: Any, spec: QuantSpec, split: bool) -> nn.Module:
    settings = {
        "activation_bits": spec.activation_bits,
        "per_row": spec.per_row,
        "gradient_clip": spec.gradient_clip,
    }
    if isinstance(module, SplitLinear):
        halves = (QuantLinear.from_float(half, weight_bits=1, **settings) for half in (module.first, module.second))
        return SplitLinear(*halves)
    if split:
        return SplitLinear.from_float(module, **settings)
    if spec.weight_bits < 32 or spec.activation_bits < 32:
        return QuantLinear.from_float(module, weight_bits=spec.weight_bits, **settings)
    if type(module) is nn.Linear:
        return module
    plain = nn.Linear(module.in_features, module.out_features, module.bias is not None, device="meta")
    plain.weight, plain.bias = module.weight, module.bias
    return plain.train(module.training)


def _embedding(module: Any, spec: QuantSpec, split: bool) -> nn.Module:
    if isinstance(module, SplitEmbedding):
        for half in (module.first, module.second):
            half.gradient_clip = spec.gradient_clip
        return module
    settings = {"gradient_clip": spec.gradient_clip}
    if spec.word_bits < 32:
        if split and spec.word_bits == 1:
            return SplitEmbedding.from_float(module, **settings)
        return QuantEmbedding.from_float(module, weight_bits=spec.word_bits, **settings)
    if type(module) is nn.Embedding:
        return module
    plain = nn.Embedding(**embedding_options(module), device="meta")
    plain.weight = module.weight
    return plain.train(module.training)


@contextmanager
def unquantized_activations(model: nn.Module) -> Iterator[None]:
    """Within this context all activations of `model` stay FP32; weights stay quantized."""
    bits = [
        (module, module.__dict__["activation_bits"]) for module in model.modules() if "activation_bits" in vars(module)
    ]
    try:
        for module, _ in bits:
            module.__dict__["activation_bits"] = 32
        yield
    finally:
        for module, before in bits:
            module.__dict__["activation_bits"] = before
