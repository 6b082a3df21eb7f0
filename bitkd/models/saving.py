"""What transformers is told about students: that `save_pretrained` is not how they are saved."""

from typing import Any

from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from bitkd.errors import InputError
from bitkd.models.marks import METHOD


class StudentQuantizationConfig(QuantizationConfigMixin):
    """The `quantization_config` of a student's config.json. What was quantized stands in its `bitkd` section."""

    def __init__(self, packed: Any = None, **_: Any) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]
        if packed is not None:
            self.packed = packed


class SavedByBitkd(HfQuantizer):
    """Refuses transformers' own `save_pretrained`, which would write the weights without their guards.

    A packed model has a `save_pretrained` of its own, which does not get here.
    """

    @property
    def _packed(self) -> bool:
        return hasattr(self.quantization_config, "packed")

    def is_serializable(self) -> bool:
        """Raises InputError with what to use instead."""
        kind, use = ("packed", "save_packed") if self._packed else ("quantized", "save_student")
        raise InputError(f"a {kind} student is not saved by save_pretrained; use bitkd.{use}(model, folder)")

    @property
    def is_trainable(self) -> bool:
        """The latent weights of a student are FP32 and can be trained on; a packed one has none."""
        return not self._packed
