"""Marks in a student's config.json that `from_pretrained` of transformers reads. No torch."""

import json
from pathlib import Path
from typing import Any

METHOD = "bitkd"
"""The quantization method of students that only bitkd can load."""

GUARD = "import_bitkd_before_from_pretrained.safetensors"
"""A file that does not exist. Where bitkd is not imported, transformers looks for it and refuses with its name, instead of
loading the weights as those of a plain model; this is what its setting `transformers_weights` does."""

TYPE_PREFIX = "bitkd-"
"""Stands before the model type of a student that only bitkd can load, such as `bitkd-bert`, so that whatever reads the type
refuses it. `import bitkd` makes transformers read it as the type behind the prefix."""

PACKED = "packed"
"""The entry of `quantization_config` that a packed student has."""


def guard(config_file: Path) -> None:
    """Make transformers, and other tools, refuse the weights where bitkd is not imported."""
    content = json.loads(config_file.read_text(encoding="utf-8"))
    content |= {"transformers_weights": GUARD, "model_type": TYPE_PREFIX + content["model_type"]}
    config_file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def is_artifact(config: Any) -> bool:
    """Whether a model's configuration describes a student of bitkd: one of `save_student`, or a packed one."""
    return getattr(config, "bitkd", None) is not None


def is_packed(config: Any) -> bool:
    """Whether a model's configuration describes a packed student (see `bitkd.models.packed`)."""
    return packed_record(config) is not None


def packed_record(config: Any) -> Any:
    """What a configuration says about packing: plain data, not checked; None if the model is not packed."""
    quantization = getattr(config, "quantization_config", None)
    data = quantization if isinstance(quantization, dict) else getattr(quantization, "__dict__", {})
    return data.get(PACKED) if data.get("quant_method") == METHOD else None
