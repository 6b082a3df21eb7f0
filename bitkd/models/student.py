"""Build a smaller BERT from chosen layers, heads and neurons of a larger one."""

import copy
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from bitkd.errors import InputError
from bitkd.models.attention import ATTENTION
from bitkd.models.encoder import encoder_layers, read_spec
from bitkd.models.importance import Importance
from bitkd.models.spec import ShapeSpec, StudentSpec, check_shape
from bitkd.quant.spec import QuantSpec
from bitkd.quant.swap import swap_layers


def build_blank(config: PretrainedConfig, classification: bool) -> PreTrainedModel:
    """A model of the shape and precision that `config.bitkd` records, with random weights.

    A split student gets single layers here; `bitkd.quant.swap.make_blank_pairs` turns them into pairs.
    """
    config = copy.deepcopy(config)
    family = AutoModelForSequenceClassification if classification else AutoModel
    # Always FP32: latent weights in half precision would lose the small updates of training.
    model = family.from_config(config, attn_implementation=ATTENTION, dtype=torch.float32)
    spec = read_spec(config)
    if (spec.heads * spec.head_size, spec.neurons) != (config.hidden_size, config.intermediate_size):
        for layer in encoder_layers(model):
            _narrow(layer, spec.heads * spec.head_size, spec.neurons, config.initializer_range)
    if spec.quant != QuantSpec():
        swap_layers(model, spec.quant)
    return model


def _narrow(layer: Any, attention: int, neurons: int, std: float) -> None:
    def linear(inputs: int, outputs: int) -> nn.Linear:
        module = nn.Linear(inputs, outputs)
        nn.init.normal_(module.weight, std=std)
        nn.init.zeros_(module.bias)
        return module

    block = layer.attention.self
    hidden = block.query.in_features
    block.query, block.key, block.value = (linear(hidden, attention) for _ in range(3))
    layer.attention.output.dense = linear(attention, hidden)
    layer.intermediate.dense = linear(hidden, neurons)
    layer.output.dense = linear(neurons, hidden)


def build_student(source: PreTrainedModel, shape: ShapeSpec, importance: Importance | None = None) -> PreTrainedModel:
    """An FP32 student made of parts of `source` (XTC's initialization, arXiv:2206.01859; width as in DynaBERT,
    arXiv:2004.04037).

    importance: needed if `shape.width` < 1 and weights are copied. Embeddings, pooler and classifier are copied.
    A bare encoder gives a bare encoder, a classifier a classifier. The source is left unchanged.
    Raises InputError if `shape` does not fit the source.
    """
    origin = read_spec(source)
    if origin.split:
        raise InputError(
            "a split student cannot be made smaller: its halves belong together; reduce it before splitting"
        )
    source_layers = len(encoder_layers(source))
    check_shape(shape, origin, source_layers)
    layers = list(range(source_layers)) if shape.layers is None else list(shape.layers)
    heads, neurons = round(origin.heads * shape.width), round(origin.neurons * shape.width)

    config = copy.deepcopy(source.config)
    config.num_hidden_layers = len(layers)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = shape.dropout
    spec = StudentSpec(origin.root_layers, origin.root_heads, origin.head_size, heads, neurons)
    classification = hasattr(source, "classifier")
    if shape.hidden_size is not None:
        ratio = shape.hidden_size / config.hidden_size
        config.hidden_size = shape.hidden_size
        config.num_attention_heads = shape.hidden_size // origin.head_size
        config.intermediate_size = round(config.intermediate_size * ratio)
        spec.heads = round(config.num_attention_heads * shape.width)
        spec.neurons = round(config.intermediate_size * shape.width)
    if shape.init == "random":
        config.bitkd = asdict(spec)
        return build_blank(config, classification)

    kept = list(_kept(importance, layers, origin, heads, neurons))
    if origin.layers is not None and origin.kept_heads is not None:
        spec.layers = [origin.layers[i] for i in layers]
        spec.kept_heads = [[origin.kept_heads[i][h] for h in kept_heads] for i, (kept_heads, _) in zip(layers, kept)]
    spec.trained_head = origin.trained_head
    config.bitkd = asdict(spec)
    student = build_blank(config, classification)
    _copy_around_encoder(student, source)
    for target, index, (kept_heads, kept_neurons) in zip(encoder_layers(student), layers, kept):
        _copy_layer(target, encoder_layers(source)[index], kept_heads, kept_neurons, origin.head_size)
    return student


def _kept(
    importance: Importance | None, layers: list[int], origin: StudentSpec, heads: int, neurons: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Heads and neurons that each layer keeps, in their old order."""
    if heads == origin.heads and neurons == origin.neurons:
        yield from ((list(range(heads)), list(range(neurons))) for _ in layers)
        return
    if importance is None:
        raise InputError(
            "student.width < 1 needs the importance of the source's heads and neurons; pass "
            "bitkd.estimate_importance(source, batches)"
        )
    for i in layers:
        top_heads = torch.topk(importance.heads[i].double(), heads).indices.sort().values
        top_neurons = torch.topk(importance.neurons[i].double(), neurons).indices.sort().values
        yield top_heads.tolist(), top_neurons.tolist()


@torch.no_grad()
def _copy_around_encoder(student: PreTrainedModel, source: PreTrainedModel) -> None:
    encoder = f"{_prefix(student)}encoder."
    around = {k: v for k, v in source.state_dict().items() if not k.startswith(encoder)}
    missing, unexpected = student.load_state_dict(around, strict=False)
    if unexpected or any(not k.startswith(encoder) for k in missing):
        raise InputError(
            f"{type(source).__name__} has other parts around its encoder than a {type(student).__name__} (missing: "
            f"{missing[:3]}, unexpected: {unexpected[:3]}); use a bare encoder or a sequence classifier"
        )


def _prefix(model: PreTrainedModel) -> str:
    return "" if model.base_model is model else f"{model.base_model_prefix}."


@torch.no_grad()
def _copy_layer(target: nn.Module, source: nn.Module, heads: list[int], neurons: list[int], head_size: int) -> None:
    rows = torch.tensor([h * head_size + i for h in heads for i in range(head_size)])
    columns = torch.tensor(neurons)
    state = {k: v.clone() for k, v in source.state_dict().items()}
    for name in ("query", "key", "value"):
        for part in ("weight", "bias"):
            state[f"attention.self.{name}.{part}"] = state[f"attention.self.{name}.{part}"][rows]
    state["attention.output.dense.weight"] = state["attention.output.dense.weight"][:, rows]
    for part in ("weight", "bias"):
        state[f"intermediate.dense.{part}"] = state[f"intermediate.dense.{part}"][columns]
    state["output.dense.weight"] = state["output.dense.weight"][:, columns]
    target.load_state_dict(state)


def add_head(encoder: PreTrainedModel, teacher: PreTrainedModel) -> PreTrainedModel:
    """A classifier on top of a task-agnostic `encoder`, with pooler and classifier copied from `teacher`.

    If their hidden sizes differ, the head starts at random and `read_spec(model).trained_head` is False.
    """
    config = copy.deepcopy(encoder.config)
    for name in ("id2label", "label2id", "problem_type", "architectures"):
        setattr(config, name, copy.deepcopy(getattr(teacher.config, name)))
    config.num_labels = len(teacher.config.id2label or {})
    spec = read_spec(config)
    spec.trained_head = config.hidden_size == teacher.config.hidden_size
    config.bitkd = asdict(spec)
    model = build_blank(config, classification=True)
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
