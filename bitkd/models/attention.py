"""One attention function for every BERT-shaped encoder: it hands out pre-softmax scores.

`output_attentions=True` of a stock model returns probabilities *after* softmax, while the distillation losses compare
the scores before it (TinyBERT, arXiv:1909.10351). Registering a function keeps the stock modelling files unforked.
"""

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from bitkd.quant.functional import quantize_tokens

ATTENTION = "bitkd"
"""Name of the implementation. It is not saved with a model: pass it as `attn_implementation` at every load."""


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

    Where `module.activation_bits` is 8, queries, keys, values and probabilities are quantized as well.
    """
    if getattr(module, "activation_bits", 32) == 8:
        query, key, value = quantize_tokens(query), quantize_tokens(key), quantize_tokens(value)
    scores = torch.matmul(query, key.transpose(2, 3)) * (scaling or query.size(-1) ** -0.5)
    masked = scores if attention_mask is None else scores + attention_mask
    probabilities = nn.functional.softmax(masked, dim=-1, dtype=torch.float32)
    probabilities = nn.functional.dropout(probabilities, p=dropout, training=module.training).to(value.dtype)
    if getattr(module, "activation_bits", 32) == 8:
        probabilities = quantize_tokens(probabilities)
    return torch.matmul(probabilities, value).transpose(1, 2).contiguous(), scores


AttentionInterface.register(ATTENTION, attention_with_scores)
# Without a mask function of the same name the padding mask would arrive as None, in silence.
AttentionMaskInterface.register(ATTENTION, eager_mask)
