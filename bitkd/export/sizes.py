"""Where every byte of a file of weights goes."""

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitkd.quant.inputs import InputQuantizer
from bitkd.quant.layout import layers_of

WORDS = "word embeddings"
MATRICES = "encoder matrices"
SCALES = "scales"
STEPS = "steps and shifts of activations"
POSITIONS = "positions and token types"
HEAD = "pooler and classifier"
NORMS = "biases and norms"
OTHER = "other tensors"
HEADER = "header"

PARTS = (WORDS, MATRICES, SCALES, STEPS, POSITIONS, HEAD, NORMS, OTHER, HEADER)
"""The parts of a file, in the order in which they are told."""


@dataclass(frozen=True)
class FilePart:
    """A part of a file of weights."""

    name: str
    size: int
    """Bytes."""

    types: str
    """The types of its numbers, as safetensors calls them; of a packed weight U8."""


def file_parts(weights: Path, model: Any) -> list[FilePart]:
    """The parts of a safetensors file; their sizes add up to the file's, exactly.

    model: the model that the file belongs to, in any form; it says which tensor is what.
    """
    with open(weights, "rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    sizes, types = dict.fromkeys(PARTS, 0), {part: set[str]() for part in PARTS}
    sizes[HEADER] = 8 + length
    part_of = _Parts(model)
    for name, entry in header.items():
        if name != "__metadata__":
            part = part_of(name, entry["shape"])
            start, end = entry["data_offsets"]
            sizes[part] += end - start
            types[part].add(entry["dtype"])
    if (total := weights.stat().st_size) != sum(sizes.values()):
        raise ValueError(f"{weights} has {total} bytes, its header describes {sum(sizes.values())}")
    return [FilePart(part, sizes[part], ", ".join(sorted(types[part]))) for part in PARTS if sizes[part]]


class _Parts:
    """Gives the part that a tensor of a model belongs to, by its name and shape."""

    def __init__(self, model: Any) -> None:
        bare = model.base_model
        prefix = "" if bare is model else f"{model.base_model_prefix}."
        words = bare.get_input_embeddings()
        self._words = next(prefix + name for name, module in bare.named_modules() if module is words)
        self._layers = f"{prefix}{layers_of(model).layout.layers}."
        self._base = prefix
        self._quantizers = {name for name, module in model.named_modules() if isinstance(module, InputQuantizer)}

    def __call__(self, name: str, shape: list[int]) -> str:
        module, _, kind = name.rpartition(".")
        if kind in ("scale", "second_scale", "column_scale"):
            return SCALES
        if module in self._quantizers:
            return STEPS
        if len(shape) < 2:
            return NORMS
        if module == self._words or module.startswith(f"{self._words}."):
            return WORDS
        if name.startswith(self._layers):
            return MATRICES
        if module.endswith(("position_embeddings", "token_type_embeddings")):
            return POSITIONS
        if not name.startswith(self._base) or ".pooler." in f".{name}":
            return HEAD
        return OTHER
