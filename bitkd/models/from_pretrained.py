"""Quantized students in `from_pretrained` of transformers: loaded where bitkd is imported, refused where it is not.

`register` tells transformers about students. It is called when transformers is imported beside bitkd, and imports neither
torch nor models by itself.
"""

from typing import Any

from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, register_quantization_config, register_quantizer

from bitkd.models.marks import METHOD, is_packed
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
        config.__dict__.pop("model_type", None)  # a class such as BertConfig takes it from config.json as it is
        config._attn_implementation = ATTENTION
        return config

    update_tp_plan = update_attn_implementation
    """The hook with the configuration in transformers before 5.23."""

    def _process_model_before_weight_loading(self, model: Any, **settings: Any) -> Any:
        from bitkd.models.attention import use_score_attention
        from bitkd.models.fit import fit_to_weights
        from bitkd.models.packed import fit_packed
        from bitkd.models.student import apply_spec
        from bitkd.quant.int8 import Int8Weight
        from bitkd.quant.packed import PackedWeight
        from bitkd.quant.pairs import SplitEmbedding, SplitLinear

        use_score_attention(model)
        apply_spec(model)
        file = settings["checkpoint_files"][0]
        if is_packed(model.config):
            fit_packed(model, file)
        else:
            fit_to_weights(model, file)
        for module in model.modules():
            # Families such as ModernBERT initialize a Linear from its parent, which fails at a pair. Buffers still need it.
            if any(
                isinstance(child, SplitLinear | SplitEmbedding | PackedWeight | Int8Weight)
                for child in module.children()
            ):
                module._is_hf_initialized = not any(True for _ in module.buffers(recurse=False))
        return model

    def _process_model_after_weight_loading(self, model: Any, **settings: Any) -> Any:
        from bitkd.models.packed import check_and_attach

        return check_and_attach(model) if is_packed(model.config) else model


def register() -> None:
    """Tell transformers about students. Calling it again does nothing."""
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(METHOD)(StudentQuantizationConfig)
        register_quantizer(METHOD)(StudentQuantizer)
