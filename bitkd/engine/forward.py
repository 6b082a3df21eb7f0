"""The `forward` of an encoder whose layers run by the engine in one call, or on a GPU by `bitkd.engine.cuda`."""

import logging
import math
import os
import threading
import weakref
from collections.abc import Callable, Iterable
from functools import cache
from inspect import Signature, signature
from itertools import accumulate
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitkd.engine.build import library
from bitkd.engine.cuda import GpuEncoder, Graphs, added_to_scores, find_kernels
from bitkd.engine.families import FAMILIES, LINEARS, Family, find_obstacle, norms_of
from bitkd.engine.native import EncoderShape, NativeEncoder
from bitkd.quant.layout import Layers, find_layers
from bitkd.quant.packed import PackedLinear
from bitkd.quant.packing import BITS, FOUR_LEVELS, TWO_BITS, pack_codes, unpack_codes
from bitkd.quant.swap import ATTENTION_QUANTIZER

log = logging.getLogger(__name__)

_EMBEDDED_TOKENS = 256
"""Tokens whose embeddings are computed at once."""


_version_of = attrgetter("_version")


class EngineForward:
    """The `forward` of a bare encoder that `find_obstacle` allows.

    The engine computes a call on the CPU in FP32, in eval mode, without gradients, for a mask of shape (batch, length) or none.
    On a GPU, `GpuEncoder` does, also under autocast. The packed layers compute the others: those that ask for hidden states or
    attentions, that give another mask, hidden states that are not finite, on the CPU also a row without tokens, layers on
    several devices, and calls in a forked process, where OpenMP does not work.

    Threads may call it at the same time. It can be copied and pickled; the copy makes an encoder of its own. It holds the
    bare encoder weakly, so that a model and what the engine made of it are freed as soon as nothing else holds the model.
    """

    def __init__(self, base: Any) -> None:
        self._base = weakref.ref(base)
        self.family = FAMILIES[type(base).__name__]
        self._native: tuple[NativeEncoder | None, Callable[[], bool]] | None = None
        self._graphs: tuple[Graphs | None, Callable[[], bool], torch.device] | None = None
        self._guard = threading.Lock()

    @property
    def base(self) -> Any:
        """The bare encoder."""
        base = self._base()
        if base is None:
            raise ReferenceError("the model of this `forward` is gone; keep the model, not its `forward` alone")
        return base

    def __deepcopy__(self, memo: dict[int, Any]) -> "EngineForward":
        return EngineForward(memo.get(id(self.base), self.base))

    def __reduce__(self) -> Any:
        return EngineForward, (self.base,)

    @property
    def __signature__(self) -> Signature:
        whole = signature(type(self.base).forward)
        return whole.replace(parameters=list(whole.parameters.values())[1:])

    def __call__(self, *args: Any, **settings: Any) -> Any:
        if _forked:
            _adapt_to_fork()
        inputs = self._inputs(args, settings)
        if inputs is not None:
            given, mask, device = inputs
            found = (self._on_gpu if device == "cuda" else self._on_cpu)(given, mask)
            if found is not None:
                return self._output(*found, settings.get("return_dict"))
        return type(self.base).forward(self.base, *args, **settings)

    def native(self) -> NativeEncoder | None:
        """The engine with this model's present weights; None where the machine has none."""
        if _forked:
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
        linears = [linear for name in LINEARS for linear in layers.parts(name)]
        unchanged = _watch(self.base, layers, linears + norms_of(layers, self.family))  # before the weights are read
        return _build(path, self.base, self.family, layers), unchanged

    def _on_cpu(self, given: dict[str, Any], mask: Tensor | None) -> tuple[Tensor, Tensor | None] | None:
        """The last hidden states and the pooled ones; None if the engine does not compute them."""
        native = self.native()
        if native is None:
            return None
        hidden = self._embed_in_parts(given)
        if hidden.dtype != torch.float32 or hidden.device.type != "cpu" or hidden.requires_grad:
            return None
        states = _encode(native, hidden, mask)
        return None if states is None else (states, _pool(self.base, states))

    def _on_gpu(self, given: dict[str, Any], mask: Tensor | None) -> tuple[Tensor, Tensor | None] | None:
        """The same on a GPU."""
        device = next(iter(given.values())).device
        with self._guard:
            if self._graphs is None or self._graphs[2] != device or not self._graphs[1]():
                self._graphs = *self._make_graphs(device), device
            graphs = self._graphs[0]
        if graphs is None:
            _refuse_replica(self.base, device)
            return None
        return graphs(given, mask)

    def _make_graphs(self, device: torch.device) -> tuple[Graphs | None, Callable[[], bool]]:
        """What runs on a device, and a function that tells whether the weights are still those that it has."""
        base = self.base
        layers = find_layers(base)
        if layers is None or find_obstacle(base, on_gpu=True) or find_kernels(device) is None:
            return None, lambda: False
        # Graphs hold the addresses of every weight, also of those outside the layers.
        unchanged = _watch(base, layers, base.modules())  # before the weights are read
        if {tensor.device for layer in layers.modules for tensor in layer.state_dict().values()} != {device}:
            return None, unchanged
        encoder = GpuEncoder(layers, norms_of(layers, self.family), getattr(base.config, self.family.activation))
        held = self._base  # a function that holds `self` would be a circle

        def encode(given: dict[str, Tensor], mask: Tensor | None) -> tuple[Tensor, Tensor | None] | None:
            hidden = _embed(held(), given)
            if hidden.requires_grad:
                return None
            states = encoder(hidden, None if mask is None else added_to_scores(mask))
            return states, _pool(held(), states)

        return Graphs(encode), unchanged

    def _embed_in_parts(self, given: dict[str, Any]) -> Tensor:
        """The same, a few rows at a time: embeddings hold several copies of the hidden states."""
        batch, length = next(given[name].shape[:2] for name in ("input_ids", "inputs_embeds") if name in given)
        rows = max(1, _EMBEDDED_TOKENS // length)
        if batch <= rows:
            return _embed(self.base, given)
        parts = (
            _embed(self.base, {name: x[i : i + rows] if x.shape[0] == batch else x for name, x in given.items()})
            for i in range(0, batch, rows)
        )
        first = next(parts)
        hidden = first.new_empty(batch, *first.shape[1:])
        hidden[: len(first)] = first
        for i, part in enumerate(parts, start=1):
            hidden[i * rows : (i + 1) * rows] = part
        return hidden

    def _inputs(
        self, args: tuple[Any, ...], settings: dict[str, Any]
    ) -> tuple[dict[str, Any], Tensor | None, str] | None:
        """What the embeddings read, the mask, and the kind of device; None if the engine does not compute this call."""
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
        ids, states = given.get("input_ids"), given.get("inputs_embeds")
        tokens: Any = ids if states is None else states
        if (ids is None) == (states is None) or tokens.dim() != (2 if states is None else 3) or tokens.numel() == 0:
            return None
        device = tokens.device
        if device.type not in ("cpu", "cuda") or (states is not None and not states.isfinite().all()):
            return None
        if mask is not None and (mask.shape != tokens.shape[:2] or mask.device != device):
            return None
        return {name: value for name, value in given.items() if value is not None}, mask, device.type

    def _output(self, states: Tensor, pooled: Tensor | None, return_dict: bool | None) -> Any:
        parts = {} if getattr(self.base, "pooler", None) is None else {"pooler_output": pooled}
        output = self.family.output(last_hidden_state=states, **parts)
        as_dict = self.base.config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()


def _embed(base: Any, given: dict[str, Any]) -> Tensor:
    """The hidden states before the first layer."""
    hidden: Tensor = base.embeddings(**{"input_ids": None} | given)  # DistilBERT's embeddings need it
    if "embeddings_project" in base._modules:  # ELECTRA
        hidden = base.embeddings_project(hidden)
    return hidden


def _pool(base: Any, states: Tensor) -> Tensor | None:
    pooler = getattr(base, "pooler", None)
    return None if pooler is None else pooler(states)


def _refuse_replica(base: Any, device: torch.device) -> None:
    """Raise RuntimeError if the embeddings are on another GPU than the inputs, and nothing moves the inputs."""
    own = next(tensor.device for tensor in base.embeddings.state_dict().values())
    if own != device and own.type == device.type and not hasattr(base.embeddings, "_hf_hook"):
        raise RuntimeError(
            f"the inputs are on {device}, the packed model on {own}: move the inputs; nn.DataParallel cannot run packed "
            "models: use a process for each GPU, or a copy of the model on each"
        )


def _encode(native: NativeEncoder, hidden: Tensor, mask: Tensor | None) -> Tensor | None:
    """The last hidden states, zeros for padding; None if a row has no tokens, or the states are not finite.

    hidden: (batch, length, hidden size), overwritten.  mask: (batch, length), not 0 = token; or None.
    """
    batch, length, width = hidden.shape
    counts = [length] * batch if mask is None else mask.bool().sum(1).tolist()
    if not all(counts):
        return None
    offsets = [0, *accumulate(counts)]
    flat = hidden.reshape(-1, width)
    if mask is None or offsets[-1] == len(flat):
        states = native.forward(flat.contiguous(), offsets)
    else:
        places = mask.reshape(-1).nonzero().squeeze(1)
        tokens = native.forward(flat.index_select(0, places), offsets)
        states = torch.zeros_like(flat).index_copy_(0, places, tokens)
    return states.view_as(hidden) if math.isfinite(states.sum().item()) else None


def _build(path: Path, base: Any, family: Family, layers: Layers) -> NativeEncoder:
    """The engine with the weights of an encoder.  path: the library."""
    attention, query, up = (layers.parts(name)[0] for name in ("attention", "query", "up"))
    head_size = attention.attention_head_size
    norms = norms_of(layers, family)
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
    for i, parts in enumerate(zip(*(layers.parts(name) for name in LINEARS))):  # by layers: each is laid out at once
        for name, linear in zip(LINEARS, parts):
            bias, column = (None if tensor is None else tensor.cpu() for tensor in (linear.bias, linear.column_scale))
            native.set_linear(i, name, *_weight_of(linear), bias, column)
    for i, norm in enumerate(norms):
        native.set_norm(i // 2, i % 2, norm.weight.cpu(), norm.bias.cpu())
    native.finish()
    return native


def _weight_of(linear: PackedLinear) -> tuple[list[tuple[Tensor, Tensor]], int]:
    """The packed halves of a weight, in a packing that the engine reads, and their bits."""
    halves = [(packed.cpu(), scale.cpu()) for packed, scale in linear.halves()]
    if linear.packing == FOUR_LEVELS:  # a code is twice its sign and the sign of what is left
        [(packed, scale)] = halves
        codes = unpack_codes(packed, FOUR_LEVELS, linear.in_features)
        outer = torch.where(codes > 0, 1, -1)
        return [(pack_codes(outer, BITS), 2 * scale), (pack_codes(codes - 2 * outer, BITS), scale)], 1
    if linear.packing not in (BITS, TWO_BITS):
        codes_of_halves = [unpack_codes(packed, linear.packing, linear.in_features) for packed, _ in halves]
        halves = [
            (pack_codes(codes, TWO_BITS), scale) for codes, (_, scale) in zip(codes_of_halves, halves, strict=True)
        ]
    return halves, 1 if linear.packing == BITS else 2


def _watch(base: Any, layers: Layers, modules: Iterable[nn.Module]) -> Callable[[], bool]:
    """A function that tells whether the layers, these modules of an encoder and their tensors are still what they are now."""
    wanted = set(map(id, modules))
    found: dict[tuple[int, str], tuple[dict[str, Any], str, Any]] = {}  # where to look, the name, and what is there

    def hold(holder: dict[str, Any], name: str) -> None:
        found[id(holder), name] = holder, name, holder[name]

    moved = []  # a move replaces buffers, but only the memory of parameters
    for path, module in base.named_modules(remove_duplicate=False):
        if id(module) not in wanted:
            continue
        parent = base
        for name in filter(None, path.split(".")):
            hold(parent._modules, name)
            parent = parent._modules[name]
        for own in (module._parameters, module._buffers):
            for name in own:
                hold(own, name)
        if not module._buffers:
            moved += [tensor for tensor in module._parameters.values() if tensor is not None][:1]
    layer_list = base.get_submodule(layers.layout.layers)
    hold(vars(layer_list), "_modules")  # another one after a layer was deleted
    held, count = list(found.values()), len(layers.modules)
    # Tensors of inference mode have no version.
    counted = [tensor for *_, tensor in held if isinstance(tensor, Tensor) and not tensor.is_inference()]
    version = sum(map(_version_of, counted))
    memory = [tensor.detach() for tensor in moved]  # kept, lest their addresses be used again

    def unchanged() -> bool:
        try:
            for holder, name, value in held:
                if holder[name] is not value:
                    return False
        except KeyError:
            return False
        return (
            len(layer_list._modules) == count
            and sum(map(_version_of, counted)) == version
            and list(map(Tensor.data_ptr, moved)) == list(map(Tensor.data_ptr, memory))
        )

    return unchanged


_forked = False


def _note_fork() -> None:
    global _forked
    _forked = True


@cache
def _adapt_to_fork() -> None:
    """Let torch use one thread: in a forked process it would wait for OpenMP's threads, which stayed in the parent."""
    torch.set_num_threads(1)
    log.warning(
        "packed models run by torch here, in one thread: neither the engine nor torch's threads work in a forked process; "
        "start it by spawn instead"
    )


os.register_at_fork(after_in_child=_note_fork)
