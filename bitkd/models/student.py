"""Build a smaller encoder from chosen layers, heads and neurons of a larger one."""

import copy
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from bitkd.errors import InputError
from bitkd.models.attention import ATTENTION, KEPT_HEADS, use_score_attention
from bitkd.models.encoder import (
    describe_source,
    encoder_layers,
    ffn_neurons,
    keep_layers,
    read_spec,
    refuse_packed,
    set_dropout,
    set_ffn_neurons,
    set_hidden_act,
    set_hidden_size,
    write_spec,
)
from bitkd.models.heads import Head, head_of
from bitkd.models.importance import Importance
from bitkd.models.spec import ShapeSpec, StudentSpec, check_shape
from bitkd.quant.layout import Layout, layers_of
from bitkd.quant.spec import QuantSpec
from bitkd.quant.swap import swap_layers


def build_blank(config: PretrainedConfig, head: Head) -> PreTrainedModel:
    """A model of the shape and precision that `config.bitkd` records, with random weights.

    A split student gets single layers here; `bitkd.quant.swap.make_blank_pairs` turns them into pairs.
    """
    config = copy.deepcopy(config)
    # Always FP32: latent weights in half precision would lose the small updates of training.
    model: PreTrainedModel = head.auto_class.from_config(config, attn_implementation=ATTENTION, dtype=torch.float32)
    use_score_attention(model)
    apply_spec(model)
    return model


def _build(config: PretrainedConfig, spec: StudentSpec, head: Head) -> PreTrainedModel:
    config.bitkd = asdict(spec)
    model = build_blank(config, head)
    write_spec(model, spec)
    return model


def apply_spec(model: PreTrainedModel) -> None:
    """Give a new model the shape and precision that its `config.bitkd` records, in place; `build_blank` does it too."""
    config, spec = model.config, read_spec(model)
    layers = layers_of(model)
    if (spec.heads * spec.head_size, spec.neurons) != (config.hidden_size, ffn_neurons(config)):
        kept_heads = spec.kept_heads or [list(range(spec.heads))] * len(layers.modules)
        for layer, attention, heads in zip(layers.modules, layers.parts("attention"), kept_heads):
            _narrow(layer, layers.layout, spec, config.initializer_range)
            attention.num_attention_heads = spec.heads
            setattr(attention, KEPT_HEADS, heads)
    first = layers.layout.first_lacks
    if first and spec.layers and spec.layers[0] > 0:
        setattr(layers.modules[0], first, copy.deepcopy(getattr(layers.modules[0], layers.layout.norm_like)))
    if spec.quant != QuantSpec():
        swap_layers(model, spec.quant)


def _narrow(layer: Any, layout: Layout, spec: StudentSpec, std: float) -> None:
    def resize(path: str, inputs: int | None = None, outputs: int | None = None) -> None:
        parent, _, name = path.rpartition(".")
        old = layer.get_submodule(path)
        sizes = inputs or old.in_features, outputs or old.out_features
        new = nn.Linear(*sizes, bias=old.bias is not None, device=old.weight.device)
        nn.init.normal_(new.weight, std=std)
        if new.bias is not None:
            nn.init.zeros_(new.bias)
        setattr(layer.get_submodule(parent), name, new)

    attention = spec.heads * spec.head_size
    for path in dict.fromkeys(layout.projections):
        resize(path, outputs=3 * attention if layout.fused else attention)
    resize(layout.attention_output, inputs=attention)
    resize(layout.up, outputs=2 * spec.neurons if layout.gated else spec.neurons)
    resize(layout.down, inputs=spec.neurons)


def build_student(source: PreTrainedModel, shape: ShapeSpec, importance: Importance | None = None) -> PreTrainedModel:
    """An FP32 student made of parts of `source` (XTC's initialization, arXiv:2206.01859; width as in DynaBERT,
    arXiv:2004.04037).

    importance: needed if weights are copied and heads or neurons left out. Embeddings, pooler and classifier are copied.
    The student has the head of the source. The source is left unchanged.
    Raises InputError if `shape` does not fit the source, or if that is packed.
    """
    refuse_packed(source, "made smaller")
    origin = read_spec(source)
    if origin.split:
        raise InputError(
            "a split student cannot be made smaller: its halves belong together; reduce it before splitting"
        )
    check_heads(source)
    check_shape(shape, describe_source(source.config))
    layers = list(range(len(encoder_layers(source)))) if shape.layers is None else list(shape.layers)
    heads, neurons = kept_sizes(shape, origin)

    config = copy.deepcopy(source.config)
    keep_layers(config, layers)
    set_dropout(config, shape.dropout)
    if shape.hidden_act is not None:
        set_hidden_act(config, shape.hidden_act)
    spec = StudentSpec(origin.root_layers, origin.root_heads, origin.head_size, heads, neurons)
    head = head_of(source)
    if shape.init == "random":
        _set_sizes(config, spec, shape)
        return _build(config, spec, head)

    kept = list(_kept(importance, layers, origin, heads, neurons))
    if origin.layers is not None and origin.kept_heads is not None:
        spec.layers = [origin.layers[i] for i in layers]
        spec.kept_heads = [[origin.kept_heads[i][h] for h in kept_heads] for i, (kept_heads, _) in zip(layers, kept)]
    spec.trained_head = origin.trained_head
    student = _build(config, spec, head)
    _copy_around_layers(student, source)
    layout = layers_of(source).layout
    for target, index, (kept_heads, kept_neurons) in zip(encoder_layers(student), layers, kept):
        _copy_layer(target, encoder_layers(source)[index], layout, kept_heads, kept_neurons, origin.head_size)
    return student


def kept_sizes(shape: ShapeSpec, source: StudentSpec) -> tuple[int, int]:
    """Heads and neurons that each layer of a copy of `source` keeps."""
    heads = round(source.heads * shape.width) if shape.heads is None else shape.heads
    neurons = round(source.neurons * shape.width) if shape.intermediate_size is None else shape.intermediate_size
    return heads, neurons


def _set_sizes(config: PretrainedConfig, spec: StudentSpec, shape: ShapeSpec) -> None:
    """Give a student with new weights its sizes, in place. Where `shape` names them, it is a stock model of these sizes."""
    if shape.hidden_size is not None:
        ratio = shape.hidden_size / config.hidden_size
        set_hidden_size(config, shape.hidden_size)
        config.num_attention_heads = shape.hidden_size // spec.head_size
        set_ffn_neurons(config, round(ffn_neurons(config) * ratio))
        spec.heads = round(config.num_attention_heads * shape.width)
        spec.neurons = round(ffn_neurons(config) * shape.width)
    if shape.heads is not None:
        config.num_attention_heads = spec.heads = shape.heads
        spec.head_size = config.hidden_size // shape.heads
    if shape.intermediate_size is not None:
        set_ffn_neurons(config, shape.intermediate_size)
        spec.neurons = shape.intermediate_size


def check_heads(model: PreTrainedModel) -> None:
    """Raise InputError if the attention of `model` is not divided into heads as its configuration says."""
    spec, layers = read_spec(model), layers_of(model)
    parts = 3 if layers.layout.fused else 1
    width = layers.parts("query")[0].out_features // parts
    if width != spec.heads * spec.head_size:
        raise InputError(
            f"{type(model).__name__} has queries of {width} features, not {spec.heads} heads of {spec.head_size}, so bitkd "
            "cannot choose heads; use an encoder whose attention is as wide as its hidden states"
        )


def _kept(
    importance: Importance | None, layers: list[int], origin: StudentSpec, heads: int, neurons: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Heads and neurons that each layer keeps, in their old order."""
    if heads == origin.heads and neurons == origin.neurons:
        yield from ((list(range(heads)), list(range(neurons))) for _ in layers)
        return
    if importance is None:
        raise InputError(
            "a copy that leaves out heads or neurons (student.width, .heads, .intermediate_size) needs their importance; pass "
            "bitkd.estimate_importance(source, batches)"
        )
    for i in layers:
        top_heads = torch.topk(importance.heads[i].double(), heads).indices.sort().values
        top_neurons = torch.topk(importance.neurons[i].double(), neurons).indices.sort().values
        yield top_heads.tolist(), top_neurons.tolist()


@torch.no_grad()
def _copy_around_layers(student: PreTrainedModel, source: PreTrainedModel) -> None:
    layers = f"{_prefix(student)}{layers_of(student).layout.layers}."
    around = {k: v for k, v in source.state_dict().items() if not k.startswith(layers)}
    # The encoder under a head may have no pooler, while a bare encoder has one.
    if getattr(source.base_model, "pooler", None) is None and hasattr(student.base_model, "pooler"):
        student.base_model.pooler = None  # type: ignore[assignment]
    missing, unexpected = student.load_state_dict(around, strict=False)
    if unexpected or any(not k.startswith(layers) for k in missing):
        raise InputError(
            f"{type(source).__name__} has other parts around its layers than a {type(student).__name__} (missing: "
            f"{missing[:3]}, unexpected: {unexpected[:3]}); use a bare encoder or one with a head of a kind of task"
        )


def _prefix(model: PreTrainedModel) -> str:
    return "" if model.base_model is model else f"{model.base_model_prefix}."


@torch.no_grad()
def _copy_layer(
    target: nn.Module, source: nn.Module, layout: Layout, heads: list[int], neurons: list[int], head_size: int
) -> None:
    features = torch.tensor([h * head_size + i for h in heads for i in range(head_size)])
    kept = torch.tensor(neurons)
    state = {k: v.clone() for k, v in source.state_dict().items()}

    def take(path: str, dim: int, indices: Tensor, blocks: int = 1) -> None:
        """Keep `indices` of each of `blocks` equal parts; a bias has the outputs only."""
        weight = state[f"{path}.weight"]
        step = weight.shape[dim] // blocks
        every = torch.cat([indices + block * step for block in range(blocks)]).to(weight.device)
        state[f"{path}.weight"] = weight.index_select(dim, every)
        if dim == 0 and f"{path}.bias" in state:
            state[f"{path}.bias"] = state[f"{path}.bias"][every]

    for path in dict.fromkeys(layout.projections):
        take(path, 0, features, blocks=3 if layout.fused else 1)
    take(layout.attention_output, 1, features)
    take(layout.up, 0, kept, blocks=2 if layout.gated else 1)
    take(layout.down, 1, kept)
    target.load_state_dict(state)


def drop_pooler(encoder: PreTrainedModel) -> PreTrainedModel:
    """A bare encoder without its pooler, in place, for an embedding reads none: DDP would fail on it, weight decay would shrink
    it, and it would take space.
    """
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None  # type: ignore[assignment]
    return encoder


def as_embedder(encoder: PreTrainedModel, teacher: PreTrainedModel) -> PreTrainedModel:
    """A task-agnostic `encoder`, in place, as what `add_head` makes of one for another kind of task: it answers by embeddings.

    They are the teacher's as soon as its hidden states are, so `read_spec(model).trained_head` is True if families and hidden
    sizes agree.
    """
    spec = read_spec(drop_pooler(encoder))
    own, others = ((model.config.model_type, model.config.hidden_size) for model in (encoder, teacher))
    spec.trained_head = spec.trained_head or own == others
    write_spec(encoder, spec)
    return encoder


def add_head(encoder: PreTrainedModel, teacher: PreTrainedModel) -> PreTrainedModel:
    """A task-agnostic `encoder` with pooler and head copied from `teacher`.

    If their families or hidden sizes differ, the head starts at random and `read_spec(model).trained_head` is False.
    """
    refuse_packed(encoder, "given a head")
    config = copy.deepcopy(encoder.config)
    for name in ("id2label", "label2id", "problem_type", "architectures"):
        setattr(config, name, copy.deepcopy(getattr(teacher.config, name)))
    config.num_labels = len(teacher.config.id2label or {})
    spec = read_spec(config)
    own, others = ((c.model_type, c.hidden_size) for c in (config, teacher.config))
    spec.trained_head = own == others
    model = _build(config, spec, head_of(teacher))
    state = {f"{_prefix(model)}{k}": v for k, v in encoder.state_dict().items()}
    if spec.trained_head:
        base = f"{_prefix(teacher)}"
        state |= {
            k: v for k, v in teacher.state_dict().items() if k.startswith(f"{base}pooler.") or not k.startswith(base)
        }
    # RoBERTa's classifier has no pooler, its bare encoder has one.
    wanted = model.state_dict()
    state = {k: v for k, v in state.items() if k in wanted or not k.startswith(f"{_prefix(model)}pooler.")}
    missing, unexpected = model.load_state_dict(state, strict=False)
    random = [k for k in missing if k.startswith(_prefix(model)) and not k.startswith(f"{_prefix(model)}pooler.")]
    if unexpected or random or (spec.trained_head and missing):
        raise InputError(
            f"the head of {type(teacher).__name__} does not fit {type(encoder).__name__} (missing: {missing[:3]}, "
            f"unexpected: {unexpected[:3]}); use a teacher of the encoder's model family"
        )
    return model
