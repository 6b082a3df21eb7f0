"""An encoder as bitkd sees it: its layers, the sizes in its configuration, and the StudentSpec that is recorded there."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from bitkd.errors import InputError
from bitkd.models.marks import METHOD, is_packed
from bitkd.models.saving import SavedByBitkd, StudentQuantizationConfig
from bitkd.models.spec import Source, StudentSpec, check_spec_data
from bitkd.quant.layout import HIDDEN_ACT, layers_of
from bitkd.quant.spec import QuantSpec, quant_data
from bitkd.store.records import parse_record

_NEURONS = ("intermediate_size", "hidden_dim")
_DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "dropout",
    "attention_dropout",
    "embedding_dropout",
    "mlp_dropout",
)


def read_spec(source: PreTrainedModel | PretrainedConfig) -> StudentSpec:
    """The StudentSpec in a model's config; for a stock model, a new one with all its layers and heads, in FP32.

    Raises InputError if the config was written by another version of bitkd, or describes no encoder with heads and FFNs.
    """
    config = source.config if isinstance(source, PreTrainedModel) else source
    recorded = getattr(config, "bitkd", None)
    if recorded is not None:
        where = f"{config.name_or_path or 'the model'}: the bitkd section of its config.json"
        check_spec_data(recorded, where)
        return parse_record(StudentSpec, json.dumps(recorded), where, "run its pipeline again")
    sizes = ("num_hidden_layers", "num_attention_heads", "hidden_size")
    missing = [name for name in sizes if not isinstance(getattr(config, name, None), int)]
    if missing:
        raise InputError(
            f"{config.name_or_path or 'the model'}: a {config.model_type} model has no {missing[0]} in its config.json; use an "
            "encoder such as BERT"
        )
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    return StudentSpec(
        root_layers=layers,
        root_heads=heads,
        head_size=config.hidden_size // heads,
        heads=heads,
        neurons=ffn_neurons(config),
        layers=list(range(layers)),
        kept_heads=[list(range(heads)) for _ in range(layers)],
    )


def describe_source(config: PretrainedConfig) -> Source:
    """The shape of a model of this configuration. Raises InputError where `read_spec` does."""
    rotary = getattr(config, "rope_parameters", None) is not None
    return Source(read_spec(config), config.num_hidden_layers, config.hidden_size, rotary)


def write_spec(model: PreTrainedModel, spec: StudentSpec) -> None:
    """Write `spec` into the model's config, which is saved with the model.

    A student whose layers are not those of a stock model is marked, so that `from_pretrained` does not take it for one, and
    `save_pretrained` refuses it.
    """
    config, layout = model.config, layers_of(model).layout
    config.bitkd = asdict(spec) | {"quant": quant_data(spec.quant)}
    stock = (spec.heads * spec.head_size, spec.neurons) == (config.hidden_size, ffn_neurons(config))
    if stock and layout.first_lacks and spec.layers:
        stock = spec.layers[0] == 0
    if stock and spec.quant == QuantSpec() and not spec.split:
        config.__dict__.pop("quantization_config", None)
        model.__dict__.pop("hf_quantizer", None)
    else:
        config.quantization_config = {"quant_method": METHOD}
        model.hf_quantizer = SavedByBitkd(StudentQuantizationConfig())  # type: ignore[assignment]


def refuse_packed(model: PreTrainedModel, what: str) -> None:
    """Raise InputError if `model` is packed.  what: is not possible then, as the end of a sentence."""
    if is_packed(model.config):
        raise InputError(
            f"{type(model).__name__} is packed, for inference only, and cannot be {what}; bitkd.unpack_student(model) gives a "
            "student that can"
        )


def encoder_layers(model: PreTrainedModel) -> Sequence[Any]:
    """The encoder layers of a model. Raises InputError if no layout of `bitkd.quant.layout` fits it."""
    return layers_of(model).modules


def set_hidden_size(config: PretrainedConfig, size: int) -> None:
    """Give a model another hidden size, also in the pooler that some families configure apart."""
    config.hidden_size = size
    if hasattr(config, "pooler_hidden_size"):
        config.pooler_hidden_size = size


def ffn_neurons(config: PretrainedConfig) -> int:
    """Neurons of each FFN. Raises InputError if the configuration has no such number."""
    return int(getattr(config, _neurons_setting(config)))


def set_ffn_neurons(config: PretrainedConfig, neurons: int) -> None:
    """Give each FFN another number of neurons."""
    setattr(config, _neurons_setting(config), neurons)


def _neurons_setting(config: PretrainedConfig) -> str:
    found = next((name for name in _NEURONS if isinstance(getattr(config, name, None), int)), None)
    if found is None:
        raise InputError(
            f"a {config.model_type} model has none of {', '.join(_NEURONS)} in its config.json; use an encoder such as BERT"
        )
    return found


def set_hidden_act(config: PretrainedConfig, name: str) -> None:
    """Give each FFN another activation function. Raises InputError if the configuration has no such setting."""
    found = next((setting for setting in HIDDEN_ACT if isinstance(getattr(config, setting, None), str)), None)
    if found is None:
        raise InputError(
            f"student.hidden_act={name}: a {config.model_type} model has none of {', '.join(HIDDEN_ACT)} in its config.json; "
            "use null"
        )
    setattr(config, found, name)


def keep_layers(config: PretrainedConfig, layers: list[int]) -> None:
    """Describe a model of only some layers, in place: how many, and the kind of attention of each (ModernBERT)."""
    if kinds := getattr(config, "layer_types", None):
        config.layer_types = [kinds[i] for i in layers]
    config.num_hidden_layers = len(layers)


def set_dropout(config: PretrainedConfig, share: float) -> None:
    """The dropout of hidden states and attention probabilities, whatever a family calls it."""
    for name in _DROPOUTS:
        if hasattr(config, name):
            setattr(config, name, share)
