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
from collections.abc import Callable
from types import MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from bitkd.quant.inputs import AttentionQuantizer, PerToken
from bitkd.quant.layout import find_layers
from bitkd.quant.packed import PackedLinear
from bitkd.quant.swap import ATTENTION_QUANTIZER

log = logging.getLogger(__name__)

MAX_GRAPHS = 16
"""Graphs that a model keeps, those of the last shapes."""

GRAPH_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
"""What a graph can be given: whole numbers of shape (batch, length)."""

_ACTIVATIONS = {"GELUActivation": "gelu", "ReLU": "relu"}
"""By class: activation functions that the kernels compute themselves."""

_MASK_ALIGNMENT = 8
"""Rows of a mask begin at multiples of this; if not, torch copies the mask in every layer."""


def kernels_of(device: torch.device) -> ModuleType:
    """The fastest kernels that run on a device: Triton's, or torch's own."""
    from bitkd.engine import torch_kernels

    if device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0):
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
    """One encoder layer of BERT's kind."""

    def __init__(self, layer: Any) -> None:
        attention, output = layer.attention.self, layer.attention.output
        self.qkv = _Product(attention.query, attention.key, attention.value)
        self.attention_output = _Product(output.dense)
        self.up = _Product(layer.intermediate.dense)
        self.down = _Product(layer.output.dense)
        self.norms = [_Norm(output.LayerNorm), _Norm(layer.output.LayerNorm)]
        self.head_size = attention.attention_head_size
        self.heads = attention.query.out_features // self.head_size
        self.quantizer: AttentionQuantizer | None = getattr(attention, ATTENTION_QUANTIZER, None)
        function = layer.intermediate.intermediate_act_fn
        self.activation = _ACTIVATIONS.get(type(function).__name__, "")
        self.function = None if self.activation else function


class _Norm:
    def __init__(self, norm: nn.LayerNorm) -> None:
        self.weight, self.bias = norm.weight.detach().float().clone(), norm.bias.detach().float().clone()
        self.eps = norm.eps


class GpuEncoder:
    """The layers of an encoder of BERT's kind, by the kernels of a GPU; see `make_runner`."""

    def __init__(self, layers: list[Any], device: torch.device) -> None:
        self.device = device
        self.kernels: Any = kernels_of(device)
        with torch.no_grad(), torch.inference_mode(False):
            self._layers = [_Layer(layer) for layer in layers]

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
            x = hidden.float().reshape(-1, shape[-1])
            codes, scales = kernels.quantize(x)
            for layer in self._layers:
                qkv = kernels.product(codes, scales, layer.qkv.terms, layer.qkv.bias, "", dtype)
                context = _attend(layer, qkv.view(*shape[:2], 3, layer.heads, layer.head_size), mask)
                part, norms = layer.attention_output, layer.norms
                y = kernels.product(*kernels.quantize(context), part.terms, part.bias, "", dtype)
                x, codes, scales = kernels.add_norm(x, y, norms[0].weight, norms[0].bias, norms[0].eps)
                y = kernels.product(codes, scales, layer.up.terms, layer.up.bias, layer.activation, dtype)
                y = y if layer.function is None else layer.function(y)
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
        scores = torch.matmul(quantizer.query(query), quantizer.key(key).transpose(2, 3)) * scaling
        scores = scores if mask is None else scores + mask
        probabilities = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
        out = torch.matmul(quantizer.probabilities(probabilities), quantizer.value(value))
    return out.transpose(1, 2).reshape(-1, layer.heads * layer.head_size)


def make_runner(model: nn.Module, device: torch.device) -> GpuEncoder | None:
    """What runs the encoder of a packed model, bare or with a head, on its device; None if these kernels cannot.

    They can if the layers are BERT's (BERT, RoBERTa, ELECTRA and others), packed, and read 8-bit codes of a scale per
    token. The weights are copied: make a new one after they have changed.
    """
    found = find_layers(model)
    return (
        GpuEncoder(list(found.modules), device) if found is not None and all(map(_is_covered, found.modules)) else None
    )


def _is_covered(layer: Any) -> bool:
    try:
        attention, output = layer.attention.self, layer.attention.output
        linears = [attention.query, attention.key, attention.value, output.dense, layer.intermediate.dense]
        linears.append(layer.output.dense)
        norms = [output.LayerNorm, layer.output.LayerNorm]
    except AttributeError:
        return False
    return (
        all(isinstance(linear, PackedLinear) and _reads_int8(linear) for linear in linears)
        and all(type(norm) is nn.LayerNorm and norm.elementwise_affine for norm in norms)
        and callable(getattr(layer.intermediate, "intermediate_act_fn", None))
        and not getattr(layer, "is_decoder", False)
    )


def _reads_int8(linear: PackedLinear) -> bool:
    return type(linear.input_quantizer) is PerToken and linear.activation_bits == 8


class _Graph:
    """The kernels of a forward pass for one shape, launched as one."""

    def __init__(self, forward: Callable[..., Any], inputs: dict[str, Tensor], pool: Any) -> None:
        self._inputs = {name: tensor.clone() for name, tensor in inputs.items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compiles and allocates, which a graph cannot
            for _ in range(2):
                forward(**self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # Another thread, such as a loader's, may use the GPU meanwhile.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._outputs = forward(**self._inputs)

    def __call__(self, inputs: dict[str, Tensor]) -> Any:
        for name, tensor in inputs.items():
            self._inputs[name].copy_(tensor)
        self._graph.replay()
        # The next call overwrites them.
        return type(self._outputs)(**{name: tensor.clone() for name, tensor in self._outputs.items()})


class _Graphs:
    """The graphs of a model, by shape. A copy of the model begins without any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tensors: list[tuple[dict[str, Any], str]] | None = None
        self.clear()

    def __deepcopy__(self, memo: Any) -> "_Graphs":
        return _Graphs()

    def __reduce__(self) -> Any:
        return _Graphs, ()

    def clear(self) -> None:
        """Forget all of them: the weights have changed."""
        self._kept: OrderedDict[Any, _Graph] = OrderedDict()
        self._seen: Counter[Any] = Counter()
        self._addresses: tuple[int, ...] = ()
        self._usable = True
        self._pool: Any = None

    def run(self, model: Any, forward: Callable[..., Any], inputs: dict[str, Tensor]) -> Any:
        """What `forward(**inputs)` of `model` returns; None if the shape is new, or if there can be no graph."""
        with self._lock:
            addresses = self._addresses_of(model)
            if addresses != self._addresses:  # the model was moved
                self.clear()
                self._addresses = addresses
            if not self._usable:
                return None
            key = (tuple(inputs), inputs["input_ids"].shape, torch.is_autocast_enabled("cuda"))
            graph = self._kept.get(key)
            if graph is None:
                self._seen[key] += 1
                if self._seen[key] < 2:
                    return None
                graph = self._capture(forward, inputs)
                if graph is None:
                    return None
                self._kept[key] = graph
                if len(self._kept) > MAX_GRAPHS:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return graph(inputs)

    def _addresses_of(self, model: Any) -> tuple[int, ...]:
        """Where the weights lie that a graph reads from the model: those outside its layers, which GpuEncoder copies."""
        if self._tensors is None:
            found = find_layers(model)
            inside = {id(module) for layer in (found.modules if found else ()) for module in layer.modules()}
            self._tensors = [
                (tensors, name)
                for module in model.modules()
                if id(module) not in inside
                for tensors in (module._parameters, module._buffers)
                for name, tensor in tensors.items()
                if tensor is not None
            ]
        return tuple(tensors[name].data_ptr() for tensors, name in self._tensors)

    def _capture(self, forward: Callable[..., Any], inputs: dict[str, Tensor]) -> _Graph | None:
        try:
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            # Tensors of inference mode could not be filled outside it.
            with torch.inference_mode(False), torch.no_grad():
                return _Graph(forward, inputs, self._pool)
        except RuntimeError as error:
            self._usable = False
            log.warning("no CUDA graph, kernels are launched one by one: %s", str(error).splitlines()[0])
            return None


_GRAPHS = "_bitkd_graphs"


def use_graphs(model: Any) -> None:
    """Make the encoder of a packed model answer by CUDA graphs where its inputs are on a GPU.

    model: bare or with a head. A shape gets its graph when it comes for the second time. With gradients, in training
    mode, and where hidden states or attentions are asked for, the encoder runs as before.
    """
    bare = model.base_model
    setattr(bare, _GRAPHS, _Graphs())
    forward = type(bare).forward

    @functools.wraps(forward)
    def by_graph(self: Any, *arguments: Any, **settings: Any) -> Any:
        inputs = _graph_inputs(self, arguments, settings)
        if inputs is not None:

            def run(attention_mask: Tensor, **rest: Tensor) -> Any:
                return forward(self, attention_mask=_additive(attention_mask), return_dict=True, **rest)

            found = getattr(self, _GRAPHS).run(self, run, inputs)
            if found is not None:
                return found
        return forward(self, *arguments, **settings)

    bare.forward = MethodType(by_graph, bare)
    bare.register_load_state_dict_post_hook(_forget)


def _forget(module: Any, _: Any) -> None:
    getattr(module, _GRAPHS).clear()


def _graph_inputs(model: Any, arguments: tuple[Any, ...], settings: dict[str, Any]) -> dict[str, Tensor] | None:
    """What a graph is given; None if it cannot answer this call."""
    ids = arguments[0] if arguments else settings.get("input_ids")
    if not isinstance(ids, Tensor) or ids.device.type != "cuda" or ids.dim() != 2:
        return None
    given = dict(zip(GRAPH_INPUTS, arguments)) | settings
    given = {name: value for name, value in given.items() if value is not None}
    config = model.config
    wants_more = any(
        [given.pop(name, getattr(config, name, False)) for name in ("output_attentions", "output_hidden_states")]
    )
    as_tuple = not given.pop("return_dict", getattr(config, "return_dict", True))
    if len(arguments) > len(GRAPH_INPUTS) or wants_more or as_tuple or not given.keys() <= set(GRAPH_INPUTS):
        return None
    given.setdefault("attention_mask", torch.ones_like(ids))
    same = all(isinstance(value, Tensor) and value.shape == ids.shape for value in given.values())
    here = ids.device == next(model.parameters()).device
    idle = not torch.is_grad_enabled() and not model.training and not torch.cuda.is_current_stream_capturing()
    on_default_stream = torch.cuda.current_stream(ids.device) == torch.cuda.default_stream(ids.device)
    if not (same and here and idle and on_default_stream):
        return None
    return {name: given[name] for name in GRAPH_INPUTS if name in given}


def _additive(mask: Tensor) -> Tensor:
    """What is added to the scores, (batch, 1, 1, length).  mask: (batch, length), 1 = token."""
    length = mask.shape[-1]
    hidden = nn.functional.pad(mask == 0, (0, -length % _MASK_ALIGNMENT))
    added = torch.zeros(hidden.shape, device=mask.device).masked_fill_(hidden, torch.finfo(torch.float32).min)
    return added[:, None, None, :length]
