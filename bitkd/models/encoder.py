"""A BERT-shaped model as bitkd sees it: its layers, and the StudentSpec in its configuration."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from bitkd.errors import InputError
from bitkd.models.spec import StudentSpec, check_spec_data
from bitkd.store.records import parse_record


def read_spec(source: PreTrainedModel | PretrainedConfig) -> StudentSpec:
    """The StudentSpec in a model's config; for a stock model, a new one with all its layers and heads, in FP32.

    Raises InputError if the config was written by another version of bitkd.
    """
    config = source.config if isinstance(source, PreTrainedModel) else source
    recorded = getattr(config, "bitkd", None)
    if recorded is not None:
        where = f"{config.name_or_path or 'the model'}: the bitkd section of its config.json"
        check_spec_data(recorded, where)
        return parse_record(StudentSpec, json.dumps(recorded), where, "run its pipeline again")
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


def write_spec(model: PreTrainedModel, spec: StudentSpec) -> None:
    """Write `spec` into the model's config, which is saved with the model."""
    model.config.bitkd = asdict(spec)


def encoder_layers(model: PreTrainedModel) -> Sequence[Any]:
    """The encoder layers of a BERT-shaped model. Raises InputError if it has none."""
    encoder: Any = getattr(getattr(model, "base_model", model), "encoder", None)
    if not isinstance(getattr(encoder, "layer", None), nn.ModuleList):
        raise InputError(
            f"{type(model).__name__} has no encoder.layer; use a BERT-shaped encoder (BERT, RoBERTa, ELECTRA)"
        )
    return encoder.layer
