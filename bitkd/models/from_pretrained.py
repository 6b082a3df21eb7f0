"""Quantized students in `from_pretrained` of transformers: loaded where bitkd is imported, refused where it is not.

`register` tells transformers about students. It is called when transformers is imported beside bitkd, and imports neither
torch nor models by itself.
"""

from typing import Any

from transformers.quantizers.auto import register_quantization_config, register_quantizer

from bitkd.models.marks import METHOD
from bitkd.models.saving import SavedByBitkd, StudentQuantizationConfig


class StudentQuantizer(SavedByBitkd):
    """Makes the layers that a student's weights fit, before transformers loads them."""

    requires_calibration = True

    def update_dtype(self, dtype: Any) -> Any:
        """FP32 always: the low-bit weights are computed from FP32 ones."""
        import torch

        return torch.float32

    def update_attn_implementation(self, config: Any) -> Any:
        """Let transformers find the weights, and compute attention as the student was trained."""
        from bitkd.models.attention import ATTENTION

        config.transformers_weights = None
        config._attn_implementation = ATTENTION
        return config

    update_tp_plan = update_attn_implementation
    """The hook with the configuration in transformers before 5.23."""

    def _process_model_before_weight_loading(self, model: Any, **settings: Any) -> Any:
        from bitkd.models.artifact import fit_to_file
        from bitkd.models.attention import use_score_attention
        from bitkd.models.student import apply_spec
        from bitkd.quant.modules import SplitEmbedding, SplitLinear

        use_score_attention(model)
        apply_spec(model)
        fit_to_file(model, settings["checkpoint_files"][0])
        for module in model.modules():
            # Families such as ModernBERT initialize a Linear from its parent, which fails at a pair. Buffers still need it.
            if any(isinstance(child, SplitLinear | SplitEmbedding) for child in module.children()):
                module._is_hf_initialized = not any(True for _ in module.buffers(recurse=False))
        return model


def register() -> None:
    """Tell transformers about students."""
    register_quantization_config(METHOD)(StudentQuantizationConfig)
    register_quantizer(METHOD)(StudentQuantizer)
