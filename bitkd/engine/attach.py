"""A packed model whose layers run by the engine: `attach` replaces the `forward` of its bare encoder.

A call computes the embeddings, gathers the real tokens, runs all layers in one call of the engine, and puts the tokens back, with
zeros for the padding. What the engine does not compute (see `EngineForward`) runs by the packed layers as before. The modules
inside the layers are not called by the engine: their forward hooks do not run.
"""

import logging
import math
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from inspect import Signature, signature
from itertools import accumulate
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    BaseModelOutputWithPoolingAndCrossAttentions,
)

from bitkd.engine.build import MODE, library, mode
from bitkd.engine.native import ACTIVATIONS, EncoderShape, NativeEncoder
from bitkd.errors import InputError
from bitkd.quant.inputs import InputQuantizer, PerToken
from bitkd.quant.layout import Layers, find_layers
from bitkd.quant.packed import PackedLinear
from bitkd.quant.packing import BITS, TWO_BITS, pack_codes, unpack_codes
from bitkd.quant.swap import ATTENTION_QUANTIZER

log = logging.getLogger(__name__)

LINEARS = ("query", "key", "value", "attention_output", "up", "down")
"""The Linears of a layer, by their names in `bitkd.quant.layout.Layout`."""

INPUT_BITS = 8
"""Bits of the activations that the engine multiplies."""


@dataclass(frozen=True)
class Family:
    """What the engine has to know of a class of bare encoders."""

    arguments: tuple[str, ...]
    """What its embeddings and its mask read, in the order of its `forward`."""

    norms: tuple[str, str]
    """The LayerNorms behind attention and behind the FFN, from the layer."""

    activation: str
    """The hidden activation's name in the configuration."""

    output: type[Any]
    """The class of what it returns."""


_BERT = Family(
    ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds"),
    ("attention.output.LayerNorm", "output.LayerNorm"),
    "hidden_act",
    BaseModelOutputWithPoolingAndCrossAttentions,
)
FAMILIES = {
    "BertModel": _BERT,
    "RobertaModel": _BERT,
    "XLMRobertaModel": _BERT,
    "ElectraModel": Family(_BERT.arguments, _BERT.norms, "hidden_act", BaseModelOutputWithPastAndCrossAttentions),
    "DistilBertModel": Family(
        ("input_ids", "attention_mask", "inputs_embeds", "position_ids"),
        ("sa_layer_norm", "output_layer_norm"),
        "activation",
        BaseModelOutput,
    ),
}
"""Classes of bare encoders that the engine runs: LayerNorm behind each half of a layer, and positions added to the embeddings."""


def attach(model: PreTrainedModel) -> bool:
    """Let the engine run the layers of a packed model, in place. Whether it will.

    The engine is compiled or loaded at the first call that needs it. With `BITKD_ENGINE=off` nothing is done; with
    `BITKD_ENGINE=require` it is loaded now, and InputError says why a model or a machine has to do without it.
    """
    wanted = mode()
    if wanted == "off":
        return False
    if obstacle := find_obstacle(model):
        if wanted == "require":
            raise InputError(f"{MODE}=require, but the engine does not run this model: {obstacle}")
        log.info("the engine does not run this model: %s", obstacle)
        return False
    base = model.base_model
    base.forward = EngineForward(base)  # type: ignore[method-assign]
    if wanted == "require":
        base.forward.native()
    return True


def detach(model: PreTrainedModel) -> None:
    """Undo `attach`."""
    if isinstance(vars(model.base_model).get("forward"), EngineForward):
        del model.base_model.forward


def kernels_of(model: PreTrainedModel) -> str | None:
    """The kernels that compute the products of an attached model, in words; None if it runs by the packed layers."""
    forward = model.base_model.forward
    native = forward.native() if isinstance(forward, EngineForward) else None
    return None if native is None else native.kernels


def find_obstacle(model: PreTrainedModel) -> str | None:
    """Why the engine cannot run the layers of a model, in words; None if it can."""
    base, layers = model.base_model, find_layers(model)
    family = FAMILIES.get(type(base).__name__)
    if family is None or layers is None:
        return f"it is a {type(base).__name__}, which is none of {', '.join(FAMILIES)}"
    if getattr(base.config, "is_decoder", False):
        return "it is a decoder"
    activation = getattr(base.config, family.activation)
    if activation not in ACTIVATIONS:
        return f"its hidden activation is {activation}, which is none of {', '.join(ACTIVATIONS)}"
    for name in LINEARS:
        for linear in layers.parts(name):
            if not isinstance(linear, PackedLinear):
                return f"the Linear {getattr(layers.layout, name)} of a layer is not packed"
            if not _is_known(linear.input_quantizer):
                return f"the input of {getattr(layers.layout, name)} is not quantized to {INPUT_BITS} bits per token"
    quantizers = [getattr(attention, ATTENTION_QUANTIZER, None) for attention in layers.parts("attention")]
    if not all(q is None or all(map(_is_known, q.children())) for q in quantizers):
        return f"its attention is quantized otherwise than to {INPUT_BITS} bits per token"
    norms = _norms(layers, family)
    shapes = {(linear.in_features, linear.out_features) for linear in layers.parts("query")}
    if len(shapes) > 1 or len({q is None for q in quantizers}) > 1 or len({norm.eps for norm in norms}) > 1:
        return "its layers differ in shape"
    if any(type(norm) is not nn.LayerNorm or norm.weight is None or norm.bias is None for norm in norms):
        return "its layers have other norms than LayerNorm"
    return None


def _is_known(quantizer: InputQuantizer | nn.Module) -> bool:
    return type(quantizer) is PerToken and quantizer.bits == INPUT_BITS


def _norms(layers: Layers, family: Family) -> list[Any]:
    return [layer.get_submodule(path) for layer in layers.modules for path in family.norms]


class EngineForward:
    """The `forward` of a bare encoder that `find_obstacle` allows.

    The engine computes a call on the CPU in FP32, in eval mode, without gradients, for a mask of shape (batch, length) or none. The
    packed layers compute the others: those that ask for hidden states or attentions, that give another mask, a row without tokens,
    or hidden states that are not finite, and calls in a forked process, where OpenMP does not work.

    Threads may call it at the same time. It can be copied and pickled; the copy makes a native encoder of its own.
    """

    def __init__(self, base: Any) -> None:
        self.base = base
        self.family = FAMILIES[type(base).__name__]
        self._native: tuple[NativeEncoder | None, Callable[[], bool]] | None = None
        self._guard = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"base": self.base, "family": self.family}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._native, self._guard = None, threading.Lock()

    @property
    def __signature__(self) -> Signature:
        whole = signature(type(self.base).forward)
        return whole.replace(parameters=list(whole.parameters.values())[1:])

    def __call__(self, *args: Any, **settings: Any) -> Any:
        embedded = self._embed(args, settings)
        if embedded is not None:
            states = _encode(*embedded)
            if states is not None:
                return self._output(states, settings.get("return_dict"))
        return type(self.base).forward(self.base, *args, **settings)

    def native(self) -> NativeEncoder | None:
        """The engine with this model's present weights; None where the machine has none."""
        if _forked:
            _tell_fork()
            return None
        with self._guard:
            if self._native is None or not self._native[1]():
                self._native = self._make()
            return self._native[0]

    def _make(self) -> tuple[NativeEncoder | None, Callable[[], bool]]:
        """The engine, and a function that tells whether the weights are still those that it has."""
        path = library()
        if path is None or find_obstacle(self.base):  # layers may have been replaced since `attach`
            return None, lambda: True
        layers = find_layers(self.base)
        assert layers is not None
        unchanged = _watch(layers, self.family)  # before the weights are read
        return _build(path, self.base, self.family, layers), unchanged

    def _embed(
        self, args: tuple[Any, ...], settings: dict[str, Any]
    ) -> tuple[NativeEncoder, Tensor, Tensor | None] | None:
        """The engine, the hidden states before the first layer, and the mask; None if the engine does not compute this call."""
        base, names = self.base, self.family.arguments
        if base.training or len(args) > len(names) or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return None
        given = dict(zip(names, args, strict=False))
        for name, value in settings.items():
            if name in names:
                given[name] = value
            elif name != "return_dict" and value is not None and value is not False:
                return None
        if base.config.output_hidden_states or base.config.output_attentions:
            return None
        mask = given.pop("attention_mask", None)
        tokens = given.get("input_ids")
        shape = None if tokens is None else tokens.shape
        if (embedded := given.get("inputs_embeds")) is not None:
            if shape is not None or not embedded.isfinite().all():
                return None
            shape, tokens = embedded.shape[:2], embedded
        if shape is None or len(shape) != 2 or not 0 < shape.numel() or tokens.device.type != "cpu":
            return None
        if mask is not None and (mask.shape != shape or mask.device.type != "cpu"):
            return None
        native = self.native()
        if native is None:
            return None
        given.setdefault("input_ids", None)  # DistilBERT's embeddings need it
        hidden = base.embeddings(**given)
        if "embeddings_project" in base._modules:  # ELECTRA
            hidden = base.embeddings_project(hidden)
        if hidden.dtype != torch.float32 or hidden.device.type != "cpu" or hidden.requires_grad:
            return None
        return native, hidden, mask

    def _output(self, states: Tensor, return_dict: bool | None) -> Any:
        pooler = getattr(self.base, "pooler", None)
        pooled = {} if pooler is None else {"pooler_output": pooler(states)}
        output = self.family.output(last_hidden_state=states, **pooled)
        as_dict = self.base.config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()


def _encode(native: NativeEncoder, hidden: Tensor, mask: Tensor | None) -> Tensor | None:
    """The last hidden states, zeros for padding; None if a row has no tokens, or the states are not finite.

    hidden: (batch, length, hidden size).  mask: (batch, length), not 0 = token; or None.
    """
    batch, length, width = hidden.shape
    counts = [length] * batch if mask is None else mask.bool().sum(1).tolist()
    if not all(counts):
        return None
    offsets = [0, *accumulate(counts)]
    flat = hidden.reshape(-1, width)
    if mask is None or offsets[-1] == len(flat):
        states = native.forward(flat.clone(memory_format=torch.contiguous_format), offsets)
    else:
        places = mask.reshape(-1).nonzero().squeeze(1)
        tokens = native.forward(flat.index_select(0, places), offsets)
        states = torch.zeros_like(flat).index_copy_(0, places, tokens)
    return states.view_as(hidden) if math.isfinite(states.sum().item()) else None


def _build(path: Any, base: Any, family: Family, layers: Layers) -> NativeEncoder:
    """The engine with the weights of an encoder.  path: the library."""
    attention, query, up = (layers.parts(name)[0] for name in ("attention", "query", "up"))
    head_size = attention.attention_head_size
    norms = _norms(layers, family)
    shape = EncoderShape(
        layers=len(layers.modules),
        hidden=query.in_features,
        heads=query.out_features // head_size,
        head_size=head_size,
        neurons=up.out_features,
        eps=norms[0].eps,
        activation=getattr(base.config, family.activation),
        quantized_attention=getattr(attention, ATTENTION_QUANTIZER, None) is not None,
    )
    native = NativeEncoder(path, shape)
    for name in LINEARS:
        for i, linear in enumerate(layers.parts(name)):
            native.set_linear(i, name, *_weight_of(linear), linear.bias)
    for i, norm in enumerate(norms):
        native.set_norm(i // 2, i % 2, norm.weight, norm.bias)
    native.finish()
    return native


def _weight_of(linear: PackedLinear) -> tuple[list[tuple[Tensor, Tensor]], int]:
    """The packed halves of a weight, in a packing that the engine reads, and their bits."""
    if linear.packing in (BITS, TWO_BITS):
        return linear.halves(), 1 if linear.packing == BITS else 2
    codes = [(unpack_codes(packed, linear.packing, linear.in_features), scale) for packed, scale in linear.halves()]
    return [(pack_codes(code, TWO_BITS), scale) for code, scale in codes], 2


def _watch(layers: Layers, family: Family) -> Callable[[], bool]:
    """A function that tells whether the layers and their weights are still what they are now."""
    norms = _norms(layers, family)
    modules = [linear for name in LINEARS for linear in layers.parts(name)] + norms
    tensors = [tensor for module in modules for tensor in module.state_dict(keep_vars=True).values()]
    counted = [tensor for tensor in tensors if not tensor.is_inference()]  # others have no version
    versions = attrgetter("_version")
    version = sum(map(versions, counted))
    # What moves, converts or replaces layers does so with all of them, so one of them shows it.
    parent, _, name = layers.layout.down.rpartition(".")
    holder, linear = layers.modules[-1].get_submodule(parent), modules[-len(norms) - 1]
    memory = norms[-1].weight.detach()  # kept, lest its address be used again

    def unchanged() -> bool:
        return (
            getattr(holder, name) is linear
            and norms[-1].weight.data_ptr() == memory.data_ptr()
            and sum(map(versions, counted)) == version
        )

    return unchanged


_forked = False


def _note_fork() -> None:
    global _forked
    _forked = True


@cache
def _tell_fork() -> None:
    log.warning(
        "packed models run by torch here: the engine does not work in a forked process; start it by spawn instead"
    )


os.register_at_fork(after_in_child=_note_fork)
