"""An attention function for encoders that also returns the pre-softmax scores, where a call asks for them.

`output_attentions=True` of a stock model returns probabilities *after* softmax, while the distillation losses compare
the scores before it (TinyBERT, arXiv:1909.10351). Because the function is registered, the stock modelling files need no
fork.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import bidirectional_mask_function, sdpa_mask

from bitkd.errors import InputError
from bitkd.models.dropout import dropout as drop_out
from bitkd.quant.inputs import AttentionQuantizer
from bitkd.quant.layout import layers_of
from bitkd.quant.swap import ATTENTION_QUANTIZER

ATTENTION = "bitkd"
"""Name of the implementation. transformers does not save it with a model: pass it as `attn_implementation` at every
load, or call `use_score_attention` afterwards."""

KEPT_HEADS = "kept_heads"
"""Attribute of a narrowed attention module: which heads of the full model it has, for biases that all layers share."""

SELECTED = "selected"
"""As a model's `output_attentions`: scores of the layers that `use_score_attention(model, layers)` selected. `attentions`
keeps its length; that of another layer is an empty tensor."""

KEEPS = "keeps_scores"
"""Attribute of an attention module while LayerReader runs it: its `output_attentions`."""

KEPT = "kept_scores"
"""Attribute of an attention module that KEEPS: its scores."""

MIXED = "mixed_tensor"
"""Attribute of a module whose result is mixed with another: a Mixed; of an attention module, the map is mixed with that of
the scores."""

_IS_SELECTED = "scores_selected"
"""Attribute of an attention module. It is no number of a layer, so that equal layers are compiled once."""


@dataclass
class Mixed:
    """What takes the place of a module's own tensor, as far as the weight says."""

    tensor: Tensor
    weight: Tensor
    """FP32 scalar from 0, the module's own tensor, to 1."""


def attention_with_scores(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    sliding_window: int | None = None,
    output_attentions: bool | str | None = None,
    **_: object,
) -> tuple[Tensor, Tensor | None]:
    """Scaled dot-product attention that returns `(output, scores)`.

    query, key, value: (batch, heads, length, head size).  output: (batch, length, heads, head size).
    scores: (batch, heads, query, key), scaled but neither masked nor normalized: the losses take the mask. They are zero
    where a window hides the key from the query.

    attention_mask: added to the scores, (batch, 1, 1 or query, key).
    position_bias: (1 or batch, heads, query, key), added to the scores (MPNet).
    sliding_window: distance from which on `attention_mask` hides a key; None hides none (ModernBERT's local layers).
    output_attentions: whether the scores are returned; None asks the configuration. Scores that nobody asks for are None,
    and those of a layer that is not among the SELECTED are empty.

    If `module` has an AttentionQuantizer (see `bitkd.quant.swap`), queries, keys, values and probabilities are
    quantized as well. If it has a Mixed of other scores, (batch, heads, query, key), their map is mixed into its own, before
    dropout and quantizers; the scores that are returned are its own.
    """
    quantizer: AttentionQuantizer | None = getattr(module, ATTENTION_QUANTIZER, None)
    if quantizer is not None:
        query, key, value = quantizer.query(query), quantizer.key(key), quantizer.value(value)
    keeps: bool | str = getattr(module, KEEPS, False)
    asked = keeps or _asked(module, output_attentions)
    wanted = asked is not False and (asked != SELECTED or getattr(module, _IS_SELECTED, True))
    dropout = dropout if module.training else 0.0
    scaling = scaling or query.size(-1) ** -0.5
    mixed: Mixed | None = getattr(module, MIXED, None)
    attends = quantizer is None and mixed is None and _can_use_sdpa(query, dropout, wanted)
    scores: Tensor | None = None
    if wanted or not attends:
        # Queries are fewer numbers than scores.
        scores = torch.matmul(query * scaling, key.transpose(2, 3))
        if position_bias is not None:
            scores = scores + position_bias
    if attends:
        mask = _sum(position_bias, attention_mask)
        if mask is not None and mask.dtype != query.dtype:
            # Not -inf in any of the types: a query without a key to see would give NaN.
            types = mask.dtype, query.dtype, _type_under_autocast(query.device, query.dtype)
            mask = mask.clamp_min(max(torch.finfo(dtype).min for dtype in types)).to(query.dtype)
        output = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    else:
        masked = _sum(scores, attention_mask)
        assert masked is not None
        probabilities = nn.functional.softmax(masked, dim=-1, dtype=torch.float32)
        if mixed is not None:
            other = mixed.tensor if attention_mask is None else mixed.tensor + attention_mask
            other = nn.functional.softmax(other, dim=-1, dtype=torch.float32)
            probabilities = torch.lerp(probabilities, other, mixed.weight)
        probabilities = drop_out(probabilities, dropout).to(value.dtype)
        if quantizer is not None:
            probabilities = quantizer.probabilities(probabilities)
        output = torch.matmul(probabilities, value)
    if not wanted:
        scores = query.new_empty(0) if asked == SELECTED else None
    elif scores is not None and sliding_window is not None and sliding_window < scores.size(-1):
        # Nothing in the model reads these scores, so a student has no reason to copy the teacher's.
        position = torch.arange(scores.size(-1), device=scores.device)
        scores = scores.masked_fill((position[:, None] - position).abs() >= sliding_window, 0.0)
    output = output.transpose(1, 2).contiguous()
    if keeps:
        setattr(module, KEPT, scores)
        return output, None
    return output, scores


def _asked(module: nn.Module, output_attentions: bool | str | None) -> bool | str:
    """Which scores a call asks for: True, False or SELECTED."""
    if output_attentions is None:
        # Without a configuration, nobody knows.
        output_attentions = getattr(getattr(module, "config", None), "output_attentions", True)
    return output_attentions if output_attentions == SELECTED else bool(output_attentions)


def _can_use_sdpa(query: Tensor, dropout: float, wanted: bool) -> bool:
    """Whether PyTorch's fused attention computes the output.

    With gradients it does so only where it pays: its backward computes the scores again, with dropout it is not fused on
    a CPU, and on CUDA the sums of its backward come in any order, while two runs must give the same bytes. Its forward
    repeats: on an H200, two runs of cuDNN's in bf16 gave all later operations the same bytes.
    """
    return not (torch.is_grad_enabled() and (wanted or dropout > 0 or query.is_cuda))


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one + other


def _type_under_autocast(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else dtype


def additive_mask(
    mask_function: Callable[..., Any] = bidirectional_mask_function,
    attention_mask: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    allow_is_bidirectional_skip: bool = False,
    **settings: Any,
) -> Tensor | None:
    """What `attention_with_scores` adds to the scores, (batch, 1, 1 or query, key): 0 where a query sees a key, else the
    lowest number of the type. None if there is no padding mask and every query sees every key.

    mask_function: transformers' function of positions.  attention_mask: (batch, key), True = token.
    settings: sizes and what else transformers' mask functions take.
    Unlike transformers' own masks it never asks whether there is any padding: on a GPU, the answer would wait until all
    work is done.
    """
    everywhere = mask_function is bidirectional_mask_function
    visible: Tensor | None
    if everywhere and attention_mask is not None:
        visible = attention_mask[:, None, None, :]
    elif everywhere and allow_is_bidirectional_skip:
        return None
    else:
        settings |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        visible = sdpa_mask(mask_function=mask_function, attention_mask=attention_mask, **settings)
    assert visible is not None
    dtype = _type_under_autocast(visible.device, dtype)
    added = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return added.masked_fill_(~visible.bool(), torch.finfo(dtype).min)


def _mpnet_self_attention(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    position_bias: Tensor | None = None,
    output_attentions: bool | str = False,
    **_: object,
) -> tuple[Tensor, ...]:
    """MPNetSelfAttention.forward by `attention_with_scores`: the stock one calls no registered function."""
    shape = (*hidden_states.shape[:-1], -1, self.attention_head_size)
    query, key, value = (linear(hidden_states).view(shape).transpose(1, 2) for linear in (self.q, self.k, self.v))
    heads = getattr(self, KEPT_HEADS, None)
    if position_bias is not None and heads is not None:
        position_bias = position_bias[:, heads]
    output, scores = attention_with_scores(
        self,
        query,
        key,
        value,
        attention_mask,
        self.dropout.p,
        position_bias=position_bias,
        output_attentions=output_attentions,
    )
    output = self.o(output.flatten(2))
    return (output,) if scores is None else (output, scores)


def _deberta_self_attention(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Tensor,
    output_attentions: bool | str = False,
    query_states: Tensor | None = None,
    relative_pos: Tensor | None = None,
    rel_embeddings: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """DisentangledSelfAttention.forward (DeBERTa-v2, arXiv:2006.03654) by `attention_with_scores`."""
    heads = self.num_attention_heads
    queries = self.query_proj(hidden_states if query_states is None else query_states)
    projected = (queries, self.key_proj(hidden_states), self.value_proj(hidden_states))
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in projected)
    parts = 1 + sum(kind in self.pos_att_type for kind in ("c2p", "p2c"))
    bias = None
    if self.relative_attention:
        bias = self.disentangled_attention_bias(
            query.flatten(0, 1), key.flatten(0, 1), relative_pos, self.pos_dropout(rel_embeddings), parts
        ).unflatten(0, (-1, heads))
    mask = torch.zeros_like(attention_mask, dtype=query.dtype)
    mask = mask.masked_fill(~attention_mask.bool(), torch.finfo(query.dtype).min)
    scaling = (parts * query.size(-1)) ** -0.5
    output, scores = attention_with_scores(
        self, query, key, value, mask, self.dropout.p, scaling, bias, output_attentions=output_attentions
    )
    return output.flatten(2), scores


OWN_FORWARDS: dict[str, Callable[..., Any]] = {
    "DisentangledSelfAttention": _deberta_self_attention,
    "MPNetSelfAttention": _mpnet_self_attention,
}
"""By class: the `forward` of attention modules that call no registered attention function."""


def use_score_attention(model: PreTrainedModel, layers: Collection[int] | None = None) -> None:
    """Make `model` compute its attention by `attention_with_scores`, so that `output_attentions=True` gives scores.

    layers: whose scores `output_attentions=SELECTED` gives; None leaves the selection as it is, at first all layers.

    Needed for a model that was loaded by `from_pretrained` without `attn_implementation`; calling it again changes only
    the selection. Raises InputError if the model's attention is its own and cannot be replaced.
    """
    check_score_attention(model)
    own = _own_attention(model)
    for module in own:
        module.forward = MethodType(OWN_FORWARDS[type(module).__name__], module)
    if not own:
        model.set_attn_implementation(ATTENTION)
    if layers is not None:
        for i, module in enumerate(layers_of(model).parts("attention")):
            setattr(module, _IS_SELECTED, i in layers)


def check_score_attention(model: PreTrainedModel) -> None:
    """Raise InputError if the model's layers are not found, or if its attention is its own and cannot be replaced."""
    layers_of(model)
    if not can_use_score_attention(model):
        raise InputError(
            f"{type(model).__name__} computes attention by itself, so bitkd can neither read its pre-softmax "
            "scores nor quantize its attention; use an encoder that calls transformers' attention functions "
            "(BERT, RoBERTa, XLM-R, ELECTRA, DistilBERT, ModernBERT), MPNet or DeBERTa-v2"
        )


def can_use_score_attention(model: PreTrainedModel) -> bool:
    """Whether the model calls a registered attention function, or has one of OWN_FORWARDS.

    Its configuration does not answer this: it takes any `attn_implementation`, also of a model that never reads it.
    """
    return model._can_set_attn_implementation() or bool(_own_attention(model))


def _own_attention(model: PreTrainedModel) -> list[Any]:
    return [module for module in model.modules() if type(module).__name__ in OWN_FORWARDS]


AttentionInterface.register(ATTENTION, attention_with_scores)
# Without a mask function of the same name, transformers would pass None in place of the padding mask.
AttentionMaskInterface.register(ATTENTION, additive_mask)
