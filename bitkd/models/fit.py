"""Bring a new model's modules in line with a file of weights, before they are loaded."""

from collections.abc import Collection, Iterable
from pathlib import Path

from safetensors import safe_open
from transformers import PreTrainedModel

from bitkd.errors import InputError
from bitkd.models.encoder import read_spec
from bitkd.quant.swap import make_blank_pairs

PAIR = ".first.weight"
"""End of the name of a weight that is the first half of a pair."""

PACKED_PAIR = ".second_packed"
"""The same in a file of packed weights, where a pair is one layer."""


def own_names(model: PreTrainedModel, names: Iterable[str]) -> dict[str, str]:
    """The names in a file of weights -> their names in `model`, without those of a head that `model` has not.

    A file of a bare encoder has no prefix; transformers adds or drops it too.
    """
    prefix, names = f"{model.base_model_prefix}.", list(names)
    whole = any(name.startswith(prefix) for name in names)
    if model.base_model is not model:
        return {name: name if whole else prefix + name for name in names}
    return {name: name.removeprefix(prefix) for name in names if name.startswith(prefix) or not whole}


def fit_to_weights(model: PreTrainedModel, weights: Path | str) -> None:
    """`fit_to_names` with the names in a file of weights that are not packed."""
    with safe_open(weights, framework="pt") as file:
        names = list(file.keys())
    fit_to_names(model, own_names(model, names).values())


def fit_to_names(model: PreTrainedModel, names: Collection[str], pair: str = PAIR) -> None:
    """Give a new model the pairs of layers that a file of weights has, and take away the pooler that it lacks, in place.

    names: of the weights in the file, as they are in `model`.  pair: how the name of one that belongs to a pair ends.
    Only the file shows which of the binary layers are pairs: a model may be split in part. Raises InputError if it does not
    fit the model's configuration.
    """
    pairs = [name.removesuffix(pair) for name in names if name.endswith(pair)]
    make_blank_pairs(model, pairs)
    if read_spec(model).split != bool(pairs):
        raise InputError(f"it has {len(pairs)} pairs of layers")
    # Encoders that were taken out of a classifier may have no pooler.
    if getattr(model, "pooler", None) is not None and not any(name.startswith("pooler.") for name in names):
        model.pooler = None  # type: ignore[assignment]
