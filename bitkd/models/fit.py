"""Bring a new model's modules in line with a file of weights, before they are loaded."""

from collections.abc import Callable, Iterable, Sequence
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


def is_classifier(architecture: str) -> bool:
    """Whether a class of transformers, by its name, is a classifier of texts."""
    return "SequenceClassification" in architecture


def renaming(model: PreTrainedModel, names: Iterable[str]) -> Callable[[str], str]:
    """A function that gives the name in `model` of a weight or module of a file.

    names: of the weights in the file. A file of a bare encoder has no prefix; transformers adds or drops it too. What belongs
    to the head of a file that is read into a bare encoder keeps its name.
    """
    prefix = f"{model.base_model_prefix}."
    if model.base_model is model:
        return lambda name: name.removeprefix(prefix)
    if any(name.startswith(prefix) for name in names):
        return lambda name: name
    return lambda name: prefix + name


def fit_to_weights(model: PreTrainedModel, weights: Path | str) -> None:
    """`fit_to_names` with the names in a file of weights that are not packed."""
    with safe_open(weights, framework="pt") as file:
        names = list(file.keys())
    fit_to_names(model, [*map(renaming(model, names), names)])


def fit_to_names(model: PreTrainedModel, names: Sequence[str], pair: str = PAIR) -> None:
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
