"""Packed students on a GPU: int8 weights, few kernels a layer, and CUDA graphs for the shapes that come again.

Codes are unpacked to int8 once: to read packed bits in every product is slower. A layer is nine kernels: four products with
scale, bias and activation function, attention, and what quantizes their inputs, two of them with the residual sum and the
LayerNorm. Between the products, numbers are FP32, or of autocast's type. Every product is the simulation's, bit for bit;
norms, softmax and activation functions may differ in the last bit, which now and then flips a code.
"""

import functools
import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from bitkd.quant.inputs import AttentionQuantizer
from bitkd.quant.layout import Layers
from bitkd.quant.packed import PackedLinear
from bitkd.quant.swap import ATTENTION_QUANTIZER

log = logging.getLogger(__name__)

MAX_GRAPHS = 16
"""Graphs that a model keeps, those of the last shapes."""

_MASK_ALIGNMENT = 8
"""Rows of a mask begin at multiples of this; if not, torch copies the mask in every layer."""


def find_kernels(device: torch.device) -> ModuleType | None:
    """The fastest kernels that run on a device: Triton's, or torch's own; None if it does not multiply int8 matrices."""
    from bitkd.engine import torch_kernels

    if device.type != "cuda" or torch.version.hip:
        return torch_kernels
    capability = torch.cuda.get_device_capability(device)
    if capability < (7, 5):
        return None
    if capability < (8, 0):
        return torch_kernels
    try:
        from bitkd.engine import triton_kernels
    except ImportError:
        _note_once("Triton is not installed: packed students run on the GPU by torch's own products, which is slower")
        return torch_kernels
    return triton_kernels


@functools.cache
def _note_once(text: str) -> None:
    log.warning(text)


class _Product:
    """Packed Linears that read the same input, side by side as one product of int8 codes."""

    def __init__(self, *linears: PackedLinear) -> None:
        terms = [linear.terms() for linear in linears]
        self.terms = []
        for place in range(max(map(len, terms))):
            # One of several pairs may have equal scales, and so one term only.
            padded = [own[place] if place < len(own) else (own[0][0] * 0, own[0][1] * 0) for own in terms]
            levels = torch.cat([levels for levels, _ in padded]).to(torch.int8)
            scales = torch.cat([scale.reshape(-1).expand(levels.shape[0]) for levels, scale in padded])
            self.terms.append((levels.contiguous(), scales.contiguous()))
        biases = [
            linear.scale.new_zeros(linear.out_features) if linear.bias is None else linear.bias for linear in linears
        ]
        self.bias = torch.cat([bias.detach().float() for bias in biases])


class _Layer:
    """One encoder layer.  parts: its modules, by their names in `bitkd.quant.layout.Layout`.  norms: behind each half."""

    def __init__(self, parts: dict[str, Any], norms: Sequence[nn.LayerNorm]) -> None:
        self.qkv = _Product(parts["query"], parts["key"], parts["value"])
        self.attention_output = _Product(parts["attention_output"])
        self.up = _Product(parts["up"])
        self.down = _Product(parts["down"])
        self.norms = [_Norm(norm) for norm in norms]
        self.head_size = parts["attention"].attention_head_size
        self.heads = parts["query"].out_features // self.head_size
        self.quantizer: AttentionQuantizer | None = getattr(parts["attention"], ATTENTION_QUANTIZER, None)


class _Norm:
    def __init__(self, norm: nn.LayerNorm) -> None:
        self.weight, self.bias = norm.weight.detach().float(), norm.bias.detach().float()
        self.eps = norm.eps


class GpuEncoder:
    """The layers of an encoder by the kernels of their device. They have LayerNorms behind attention and behind the FFN.

    The weights are copied: make a new one after they have changed.
    layers: all of its Linears are packed, and read 8-bit codes of a scale per token.
    norms: two of each layer.  activation: the FFN's, by its name in transformers: gelu, relu, or another GELU.
    """

    def __init__(self, layers: Layers, norms: Sequence[nn.LayerNorm], activation: str) -> None:
        names = ("attention", "query", "key", "value", "attention_output", "up", "down")
        parts = [dict(zip(names, modules)) for modules in zip(*map(layers.parts, names), strict=True)]
        self.kernels: Any = find_kernels(parts[0]["query"].scale.device)
        self._in_product = activation if activation in ("gelu", "relu") else ""
        with torch.inference_mode(False), torch.no_grad():
            pairs = zip(norms[::2], norms[1::2], strict=True)
            self._layers = [_Layer(part, pair) for part, pair in zip(parts, pairs, strict=True)]

    def __call__(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """The last layer's hidden states, (batch, length, hidden) in FP32.

        hidden: (batch, length, hidden).  mask: None, or what is added to the scores, (batch, 1, 1 or length, length).
        """
        kernels, device = self.kernels, hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
        if mask is not None:
            mask = mask.clamp_min(torch.finfo(dtype).min).to(dtype)
        with torch.autocast(device, enabled=False):
            shape = hidden.shape
            x = hidden.float().reshape(-1, shape[-1]).contiguous()
            codes, scales = kernels.quantize(x)
            for layer in self._layers:
                qkv = kernels.product(codes, scales, layer.qkv.terms, layer.qkv.bias, "", dtype)
                context = _attend(layer, qkv.view(*shape[:2], 3, layer.heads, layer.head_size), mask)
                part, norms = layer.attention_output, layer.norms
                y = kernels.product(*kernels.quantize(context), part.terms, part.bias, "", dtype)
                x, codes, scales = kernels.add_norm(x, y, norms[0].weight, norms[0].bias, norms[0].eps)
                y = kernels.product(codes, scales, layer.up.terms, layer.up.bias, self._in_product, dtype)
                y = y if self._in_product else nn.functional.gelu(y, approximate="tanh")
                y = kernels.product(*kernels.quantize(y), layer.down.terms, layer.down.bias, "", dtype)
                x, codes, scales = kernels.add_norm(x, y, norms[1].weight, norms[1].bias, norms[1].eps)
            return x.view(shape)


def _attend(layer: _Layer, qkv: Tensor, mask: Tensor | None) -> Tensor:
    """Self-attention, (tokens, heads * head size).  qkv: (batch, length, 3, heads, head size)."""
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    scaling, quantizer = layer.head_size**-0.5, layer.quantizer
    if quantizer is None:
        out = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    else:  # in the order of `bitkd.models.attention`
        scores = torch.matmul(quantizer.query(query) * scaling, quantizer.key(key).transpose(2, 3))
        scores = scores if mask is None else scores + mask
        probabilities = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
        out = torch.matmul(quantizer.probabilities(probabilities), quantizer.value(value))
    return out.transpose(1, 2).reshape(-1, layer.heads * layer.head_size)


Result = tuple[Tensor, Tensor | None]
"""The last hidden states and the pooled ones."""

Encode = Callable[[dict[str, Tensor], Tensor | None], Result | None]
"""A function of what the embeddings read and of a mask, (batch, length) or None. It gives None if a gradient is needed."""


class _Graph:
    """The kernels of one shape, launched as one."""

    def __init__(self, encode: Encode, given: dict[str, Tensor], mask: Tensor, pool: Any) -> None:
        self._inputs = [tensor.clone() for tensor in (*given.values(), mask)]
        named = dict(zip(given, self._inputs))
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compiles and allocates, which a graph cannot
            for _ in range(2):
                encode(named, self._inputs[-1])
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # Another thread, such as a loader's, may use the GPU meanwhile.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            result = encode(named, self._inputs[-1])
        assert result is not None  # gradients are off
        self._states, self._pooled = result

    def __call__(self, given: dict[str, Tensor], mask: Tensor) -> Result:
        for own, tensor in zip(self._inputs, (*given.values(), mask), strict=True):
            own.copy_(tensor)
        self._graph.replay()
        # The next call overwrites them.
        return self._states.clone(), None if self._pooled is None else self._pooled.clone()


class Graphs:
    """Runs a function by CUDA graphs, one for each shape. A shape gets its graph when it comes for the second time."""

    def __init__(self, encode: Encode) -> None:
        self._encode = encode
        self._lock = threading.Lock()
        self._kept: OrderedDict[Any, _Graph] = OrderedDict()
        self._seen: Counter[Any] = Counter()
        self._usable = True
        self._pool: Any = None

    def __call__(self, given: dict[str, Tensor], mask: Tensor | None) -> Result | None:
        """What the function returns.  given: tensors by name, on one GPU.  mask: (batch, length) or None."""
        with torch.cuda.device(next(iter(given.values())).device):
            return self._run(given, mask)

    def _run(self, given: dict[str, Tensor], mask: Tensor | None) -> Result | None:
        ids = given.get("input_ids")
        alike = ids is not None and all(tensor.shape == ids.shape for tensor in given.values())
        if ids is None or not alike or torch.is_grad_enabled() or not _on_default_stream(ids.device):
            return self._encode(given, mask)
        mask = torch.ones_like(ids) if mask is None else mask
        with self._lock:
            graph = self._find(given, mask) if self._usable else None
            return self._encode(given, mask) if graph is None else graph(given, mask)

    def _find(self, given: dict[str, Tensor], mask: Tensor) -> _Graph | None:
        """The graph for this shape; None if the shape is new, or if there can be no graph."""
        key = (*given, mask.shape, torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda"))
        graph = self._kept.get(key)
        if graph is None:
            self._seen[key] += 1
            graph = self._capture(given, mask) if self._seen[key] > 1 else None
            if graph is None:
                return None
            self._kept[key] = graph
            if len(self._kept) > MAX_GRAPHS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return graph

    def _capture(self, given: dict[str, Tensor], mask: Tensor) -> _Graph | None:
        try:
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            # Tensors of inference mode could not be filled outside it.
            with torch.inference_mode(False), torch.no_grad():
                return _Graph(self._encode, given, mask, self._pool)
        except RuntimeError as error:
            self._usable = False
            log.warning("no CUDA graph, kernels are launched one by one: %s", str(error).splitlines()[0])
            return None


def _on_default_stream(device: torch.device) -> bool:
    """Whether work on the GPU is in one order, and is not captured already: graphs share their memory."""
    current = torch.cuda.current_stream(device)
    return current == torch.cuda.default_stream(device) and not torch.cuda.is_current_stream_capturing()


def added_to_scores(mask: Tensor) -> Tensor:
    """What hides the padding's scores, (batch, 1, 1, length).  mask: (batch, length), not 0 = token."""
    length = mask.shape[-1]
    hidden = nn.functional.pad(mask == 0, (0, -length % _MASK_ALIGNMENT))
    added = torch.zeros(hidden.shape, device=mask.device).masked_fill_(hidden, torch.finfo(torch.float32).min)
    return added[:, None, None, :length]
