"""The compiled encoder (`encoder.cpp`) as a Python object."""

import ctypes
from ctypes import POINTER, c_char_p, c_float, c_int, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitkd.quant.packing import BITS, TWO_BITS

ACTIVATIONS = {"gelu": 0, "relu": 1, "gelu_new": 2, "gelu_pytorch_tanh": 2}
"""Hidden activations that the encoder computes, by their names in transformers."""

KERNELS = {"automatic": 0, "TABLE16": 1, "VNNI": 2, "TABLE64": 3, "AMX": 4}
"""How products are computed; `encoder.cpp` describes them."""

PRODUCTS = ("qkv", "attention_output", "up", "down")
"""The products of a layer; queries, keys and values are one."""

_LINEARS = ("query", "key", "value", "attention_output", "up", "down")
_PACKINGS = {1: BITS, 2: TWO_BITS}
_PROTOTYPES: dict[str, tuple[Any, list[Any]]] = {
    "bitkd_new": (c_void_p, [c_int64] * 5 + [c_float, c_int32, c_float, c_int32]),
    "bitkd_free": (None, [c_void_p]),
    "bitkd_use": (c_int, [c_void_p, c_int32]),
    "bitkd_set_linear": (
        c_int,
        [c_void_p, c_int64, c_int32, c_int32, c_void_p, c_void_p, c_int64, c_void_p, c_void_p, c_void_p, c_void_p],
    ),
    "bitkd_set_norm": (c_int, [c_void_p, c_int64, c_int32, c_void_p, c_void_p]),
    "bitkd_finish": (c_int, [c_void_p]),
    "bitkd_kernels": (c_char_p, [c_void_p]),
    "bitkd_forward": (c_int, [c_void_p, c_void_p, POINTER(c_int64), c_int64, c_int32]),
    "bitkd_linear": (c_int, [c_void_p, c_int64, c_int32, c_void_p, c_int64, c_void_p, c_int32]),
}


@dataclass(frozen=True)
class EncoderShape:
    """What the layers of an encoder have in common."""

    layers: int
    hidden: int
    heads: int
    head_size: int
    neurons: int
    eps: float
    """Of LayerNorm."""

    activation: str = "gelu"
    """A key of ACTIVATIONS."""

    quantized_attention: bool = False
    """Whether queries, keys, values and probabilities are quantized to 8 bits."""

    def sizes(self, name: str) -> tuple[int, int]:
        """Rows and columns of a Linear's weight.  name: query, key, value, attention_output, up or down."""
        width = self.heads * self.head_size
        others = {
            "attention_output": (self.hidden, width),
            "up": (self.neurons, self.hidden),
            "down": (self.hidden, self.neurons),
        }
        return others.get(name, (width, self.hidden))

    def outputs(self, product: str) -> int:
        """Columns that a product gives."""
        return 3 * self.sizes("query")[0] if product == "qkv" else self.sizes(product)[0]


class NativeEncoder:
    """An encoder's weights, laid out for this processor. Set every Linear and norm, then `finish`; then any number of threads
    may call `forward` at the same time.

    library: the compiled `encoder.cpp`.  kernel: one of KERNELS; ValueError if the library lacks it.
    Raises MemoryError if the weights do not fit into memory, ValueError if they do not fit the shape.
    """

    def __init__(self, library: Path, shape: EncoderShape, kernel: str = "automatic") -> None:
        self.shape = shape
        self._calls = _open(library)
        self._handle: int | None = self._calls.bitkd_new(
            shape.layers,
            shape.hidden,
            shape.heads,
            shape.head_size,
            shape.neurons,
            shape.eps,
            ACTIVATIONS[shape.activation],
            shape.head_size**-0.5,
            int(shape.quantized_attention),
        )
        if self._handle is None:
            raise ValueError(f"no encoder has the shape {shape}")
        if self._calls.bitkd_use(self._handle, KERNELS[kernel]):
            raise ValueError(f"the kernel {kernel} needs another processor")

    def __del__(self) -> None:
        handle, self._handle = getattr(self, "_handle", None), None
        if handle is not None:
            self._calls.bitkd_free(handle)

    def set_linear(
        self,
        layer: int,
        name: str,
        halves: list[tuple[Tensor, Tensor]],
        bits: int,
        bias: Tensor | None,
        column: Tensor | None = None,
    ) -> None:
        """Set a Linear.

        name: query, key, value, attention_output, up or down.  halves: the packed codes (uint8) and the scale (FP32, (1,)
        or (rows,)) of its weight, or of both halves of a pair (see `bitkd.quant.packed.PackedWeight`).
        bits: 1, or 2 for ternary codes in TWO_BITS.  column: FP32, the scales of the columns, (columns,); None if there are none.
        Raises ValueError if a tensor has another type or shape.
        """
        self._check_linear(layer, name, halves, bits, bias)
        tensors = [part.contiguous() for half in halves for part in half]
        pointers = [tensor.data_ptr() for tensor in tensors] + [None] * (4 - len(tensors))
        bias = None if bias is None else bias.detach().float().contiguous()
        if column is not None:
            _expect(
                column,
                torch.float32,
                [(self.shape.sizes(name)[1],)],
                f"the scale of columns of {name} of layer {layer}",
            )
            column = column.contiguous()
        packed, scale, second, second_scale = pointers
        self._check(
            self._calls.bitkd_set_linear(
                self._handle,
                layer,
                _LINEARS.index(name),
                bits,
                packed,
                scale,
                tensors[1].numel(),
                second,
                second_scale,
                None if column is None else column.data_ptr(),
                None if bias is None else bias.data_ptr(),
            )
        )

    def _check_linear(
        self, layer: int, name: str, halves: list[tuple[Tensor, Tensor]], bits: int, bias: Tensor | None
    ) -> None:
        if bits not in _PACKINGS or len(halves) not in ((1, 2) if bits == 1 else (1,)):
            raise ValueError(
                f"{len(halves)} halves of {bits} bits; a weight has one half of 1 or 2 bits, or two of 1 bit"
            )
        rows, columns = self.shape.sizes(name)
        for packed, scale in halves:
            _expect(packed, torch.uint8, [(rows, _PACKINGS[bits].columns(columns))], f"{name} of layer {layer}")
            _expect(scale, torch.float32, [(1,), (rows,)], f"a scale of {name} of layer {layer}")
        if len({scale.shape for _, scale in halves}) > 1:
            raise ValueError(
                f"the halves of {name} of layer {layer} have different scales: one for all rows, and one for each"
            )
        if bias is not None:
            _expect(bias, None, [(rows,)], f"the bias of {name} of layer {layer}")

    def set_norm(self, layer: int, which: int, weight: Tensor, bias: Tensor) -> None:
        """Set the LayerNorm behind attention (which = 0) or behind the FFN (1).  weight, bias: (hidden,).

        Raises ValueError if one has another shape.
        """
        for tensor in (weight, bias):
            _expect(tensor, None, [(self.shape.hidden,)], f"a norm of layer {layer}")
        weight, bias = weight.detach().float().contiguous(), bias.detach().float().contiguous()
        self._check(self._calls.bitkd_set_norm(self._handle, layer, which, weight.data_ptr(), bias.data_ptr()))

    def finish(self) -> None:
        """Check that no weight is missing. Each product was laid out as soon as its parts were set.

        Raises ValueError if one is.
        """
        self._check(self._calls.bitkd_finish(self._handle))

    @property
    def kernels(self) -> str:
        """The kernel of each product, in words."""
        kernels: bytes = self._calls.bitkd_kernels(self._handle)
        return kernels.decode()

    def forward(self, hidden: Tensor, offsets: list[int], threads: int | None = None) -> Tensor:
        """Replace hidden states by the encoder's output, in place, and return them.

        hidden: FP32 (tokens, hidden), contiguous, the tokens of all sequences one after the other, without padding.
        offsets: the first token of each sequence, and the number of tokens.  threads: None for those of torch.
        Raises ValueError if the tensor or the offsets do not fit.
        """
        _expect(hidden, torch.float32, [(offsets[-1], self.shape.hidden)], "the hidden states")
        if not hidden.is_contiguous():
            raise ValueError("the hidden states are not contiguous; they are replaced in place, so they must be")
        positions = (c_int64 * len(offsets))(*offsets)
        threads = torch.get_num_threads() if threads is None else threads
        self._check(self._calls.bitkd_forward(self._handle, hidden.data_ptr(), positions, len(offsets) - 1, threads))
        return hidden

    def linear(self, layer: int, product: str, x: Tensor, threads: int = 1) -> Tensor:
        """One of PRODUCTS alone, with bias, without activation function: FP32 (tokens, outputs).  x: FP32 (tokens, columns)."""
        columns = self.shape.sizes(_LINEARS[0] if product == "qkv" else product)[1]
        _expect(x, torch.float32, [(x.shape[0], columns)], f"the input of {product}")
        x = x.contiguous()
        y = torch.empty(x.shape[0], self.shape.outputs(product))
        index = PRODUCTS.index(product)
        self._check(
            self._calls.bitkd_linear(self._handle, layer, index, x.data_ptr(), x.shape[0], y.data_ptr(), threads)
        )
        return y

    @staticmethod
    def _check(status: int) -> None:
        if status == -2:
            raise MemoryError("the engine has not enough memory")
        if status:
            raise ValueError("these weights do not fit the encoder's shape, or some are missing")


def _expect(tensor: Tensor, dtype: torch.dtype | None, shapes: list[tuple[int, ...]], name: str) -> None:
    """Raise ValueError if a tensor is not of this type (None: of floats) on the CPU, or has none of these shapes."""
    fits = tensor.is_floating_point() if dtype is None else tensor.dtype == dtype
    if not fits or tuple(tensor.shape) not in shapes or tensor.device.type != "cpu":
        allowed = " or ".join(map(str, shapes))
        raise ValueError(
            f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}, which does not fit: it must be "
            f"{dtype or 'floats'} of shape {allowed} on the CPU"
        )


@cache
def _open(library: Path) -> Any:
    """The library's functions. torch is imported above: both use the OpenMP runtime that it brings along."""
    calls = ctypes.CDLL(str(library))
    for name, (result, arguments) in _PROTOTYPES.items():
        function = getattr(calls, name)
        function.restype, function.argtypes = result, arguments
    return calls
