"""bitkd: from a fine-tuned BERT to a 1-bit BERT by knowledge distillation.

Public names, imported when first used (torch, lightning and transformers take seconds to load):
binarize, ternarize, split_ternary, QuantSpec, prepare, WeightSplitting, build_student, load_student, save_student,
load_config, InputError.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "InputError": "bitkd.errors",
    "QuantSpec": "bitkd.quant.spec",
    "WeightSplitting": "bitkd.callbacks",
    "binarize": "bitkd.quant.functional",
    "build_student": "bitkd.models.student",
    "load_config": "bitkd.config.load",
    "load_student": "bitkd.models.artifact",
    "prepare": "bitkd.models.prepare",
    "save_student": "bitkd.models.artifact",
    "split_ternary": "bitkd.quant.splitting",
    "ternarize": "bitkd.quant.functional",
}
__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'bitkd' has no attribute '{name}'")
    return getattr(import_module(_PUBLIC[name]), name)
