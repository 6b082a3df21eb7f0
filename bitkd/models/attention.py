"""An attention function for every BERT-shaped encoder that also returns the pre-softmax scores.

`output_attentions=True` of a stock model returns probabilities *after* softmax, while the distillation losses compare
the scores before it (TinyBERT, arXiv:1909.10351). Because the function is registered, the stock modelling files need no
fork.
"""

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from bitkd.errors import InputError
from bitkd.quant.inputs import AttentionQuantizer
from bitkd.quant.swap import ATTENTION_QUANTIZER

ATTENTION = "bitkd"
"""Name of the implementation. transformers does not save it with a model: pass it as `attn_implementation` at every
load, or call `use_score_attention` afterwards."""


def attention_with_scores(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: object,
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention that returns `(output, scores)`.

    query, key, value: (batch, heads, length, head size).  output: (batch, length, heads, head size).
    scores: (batch, heads, query, key), scaled but neither masked nor normalized: the losses take the mask.

    If `module` has an AttentionQuantizer (see `bitkd.quant.swap`), queries, keys, values and probabilities are
    quantized as well.
    """
    quantizer: AttentionQuantizer | None = getattr(module, ATTENTION_QUANTIZER, None)
    if quantizer is not None:
        query, key, value = quantizer.query(query), quantizer.key(key), quantizer.value(value)
    scores = torch.matmul(query, key.transpose(2, 3)) * (scaling or query.size(-1) ** -0.5)
    masked = scores if attention_mask is None else scores + attention_mask
    probabilities = nn.functional.softmax(masked, dim=-1, dtype=torch.float32)
    probabilities = nn.functional.dropout(probabilities, p=dropout, training=module.training).to(value.dtype)
    if quantizer is not None:
        probabilities = quantizer.probabilities(probabilities)
    return torch.matmul(probabilities, value).transpose(1, 2).contiguous(), scores


def use_score_attention(model: PreTrainedModel) -> None:
    """Make `model` compute its attention by `attention_with_scores`, so that `output_attentions=True` gives scores.

    Needed for a model that was loaded by `from_pretrained` without `attn_implementation`; calling it again does nothing.
    Raises InputError if the model's attention is its own and cannot be replaced.
    """
    check_score_attention(model)
    model.set_attn_implementation(ATTENTION)


def check_score_attention(model: PreTrainedModel) -> None:
    """Raise InputError if the model's attention is its own and cannot be replaced."""
    if not can_use_score_attention(model):
        raise InputError(
            f"{type(model).__name__} computes attention by itself, so bitkd can neither read its pre-softmax "
            "scores nor quantize its attention; use an encoder that calls transformers' attention functions "
            "(BERT, RoBERTa, ELECTRA)"
        )


def can_use_score_attention(model: PreTrainedModel) -> bool:
    """Whether the model calls a registered attention function.

    Its configuration does not answer this: it takes any `attn_implementation`, also of a model that never reads it.
    """
    return model._can_set_attn_implementation()


AttentionInterface.register(ATTENTION, attention_with_scores)
# Without a mask function of the same name, transformers would pass None in place of the padding mask.
AttentionMaskInterface.register(ATTENTION, eager_mask)
