"""How a folder is packed, as its config.json records it, and whether that file is as it was written."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from bitkd.errors import InputError
from bitkd.files import digest
from bitkd.models.marks import PACKED, packed_record
from bitkd.quant.packing import TERNARY_PACKINGS

FORMAT = 1
"""Version of packed folders; folders of another version are refused."""

EXPORT_AGAIN = "export the student again"

_FREE = {
    "_name_or_path",
    "architectures",
    "dtype",
    "finetuning_task",
    "id2label",
    "label2id",
    "model_type",
    "problem_type",
    "quantization_config",
    "torch_dtype",
    "transformers_version",
    "transformers_weights",
}
"""Entries of config.json that decide no logits, or that the weights' names and shapes decide too."""


@dataclass(frozen=True)
class PackedRecord:
    """How a folder is packed: the entry `packed` of `quantization_config` in its config.json."""

    ternary: str
    """Name of the packing of ternary weights (`bitkd.quant.packing.TERNARY_PACKINGS`)."""

    int8: list[str]
    """Names of the other modules whose weights have 8 bits."""

    checksum: str
    """SHA-256 of model.safetensors."""

    config: str
    """`config_digest` of config.json."""

    format: int = FORMAT


def read_record(model: PreTrainedModel, where: Path | str) -> PackedRecord:
    """How a model is packed, by its configuration.  where: its file of weights, for messages.

    Raises InputError if the record is incomplete or of another version.
    """
    content = packed_record(model.config)
    place = f"{Path(where).parent / 'config.json'}: quantization_config.{PACKED}"
    if not isinstance(content, dict):
        raise InputError(f"{place} is {content!r}, not how the model is packed; {EXPORT_AGAIN}")
    if (found := content.get("format")) != FORMAT:
        newer = "install a newer bitkd" if isinstance(found, int) and found > FORMAT else EXPORT_AGAIN
        raise InputError(f"{place} has format {found!r}, this version of bitkd reads {FORMAT}; {newer}")
    kinds: dict[str, type] = {"ternary": str, "int8": list, "checksum": str, "config": str}
    for name, kind in kinds.items():
        if not isinstance(content.get(name), kind):
            raise InputError(f"{place}.{name} is {content.get(name)!r}, not a {kind.__name__}; {EXPORT_AGAIN}")
    if unknown := sorted(content.keys() - kinds.keys() - {"format"}):
        raise InputError(f"{place} has the unknown entry {unknown[0]!r}; {EXPORT_AGAIN}")
    if content["ternary"] not in TERNARY_PACKINGS:
        raise InputError(
            f"{place}.ternary is {content['ternary']!r}, not one of {', '.join(TERNARY_PACKINGS)}; {EXPORT_AGAIN}"
        )
    return PackedRecord(**content)


def config_digest(content: dict[str, Any]) -> str:
    """A digest of what decides logits in a config.json.  content: of the file."""
    return digest({name: value for name, value in content.items() if name not in _FREE})


def check_config(file: Path, record: PackedRecord) -> None:
    """Raise InputError if what decides logits in a config.json is not as it was written.

    Tensors have the same shapes with another number of heads, another activation function or other bits of activations.
    """
    try:
        found = config_digest(json.loads(file.read_bytes()))
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{file} cannot be read: {error}; copy the folder again") from error
    if found != record.config:
        raise InputError(
            f"{file} was changed after it was written, in an entry that decides logits; copy the folder again, or {EXPORT_AGAIN}"
        )
