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
    """Refuses `save_pretrained`: transformers would write the weights without their guard."""

    def is_serializable(self) -> bool:
        """Raises InputError with what to use instead."""
        raise InputError("a quantized student is not saved by save_pretrained; use bitkd.save_student(model, folder)")

    @property
    def is_trainable(self) -> bool:
        """The latent weights are FP32 and can be trained on."""
        return True
