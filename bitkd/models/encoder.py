"""A BERT-shaped model as bitkd sees it: its layers, and the StudentSpec in its configuration."""

import copy
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from bitkd.errors import InputError
from bitkd.models.spec import StudentSpec


def spec_of(source: PreTrainedModel | PretrainedConfig) -> StudentSpec:
    """The StudentSpec in a model's config; of a stock model, the one that says "all of itself"."""
    config = source.config if isinstance(source, PreTrainedModel) else source
    remembered = getattr(config, "bitkd", None)
    if remembered is not None:
        return StudentSpec(**copy.deepcopy(remembered))
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    return StudentSpec(
        root_layers=layers,
        root_heads=heads,
        head_size=config.hidden_size // heads,
        heads=heads,
        neurons=config.intermediate_size,
        layers=list(range(layers)),
        kept_heads=[list(range(heads)) for _ in range(layers)],
    )


def remember(model: PreTrainedModel, spec: StudentSpec) -> None:
    """Write `spec` into the model's config, from where it is saved."""
    model.config.bitkd = asdict(spec)


def encoder_layers(model: PreTrainedModel) -> Sequence[Any]:
    """The encoder layers of a BERT-shaped model."""
    encoder: Any = getattr(model.base_model, "encoder", None)
    if not isinstance(getattr(encoder, "layer", None), nn.ModuleList):
        raise InputError(
            f"{type(model).__name__} has no encoder.layer; use a BERT-shaped encoder (BERT, RoBERTa, ELECTRA)"
        )
    return encoder.layer
