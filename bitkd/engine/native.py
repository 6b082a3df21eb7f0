"""The compiled encoder (`encoder.cpp`) as a Python object."""

import ctypes
from ctypes import POINTER, c_char_p, c_float, c_int, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ACTIVATIONS = {"gelu": 0, "relu": 1, "gelu_new": 2, "gelu_pytorch_tanh": 2}
"""Hidden activations that the encoder computes, by their names in transformers."""

KERNELS = {"automatic": 0, "TABLE16": 1, "VNNI": 2, "TABLE64": 3, "AMX": 4}
"""How products are computed; `encoder.cpp` describes them."""

PRODUCTS = ("qkv", "attention_output", "up", "down")
"""The products of a layer; queries, keys and values are one."""

_LINEARS = ("query", "key", "value", "attention_output", "up", "down")
_PROTOTYPES: dict[str, tuple[Any, list[Any]]] = {
    "bitkd_new": (c_void_p, [c_int64] * 5 + [c_float, c_int32, c_float, c_int32]),
    "bitkd_free": (None, [c_void_p]),
    "bitkd_use": (c_int, [c_void_p, c_int32]),
    "bitkd_set_linear": (
        c_int,
        [c_void_p, c_int64, c_int32, c_int32, c_void_p, c_void_p, c_int64, c_void_p, c_void_p, c_void_p],
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

    def outputs(self, product: str) -> int:
        """Columns that a product gives."""
        width = self.heads * self.head_size
        return {"qkv": 3 * width, "attention_output": self.hidden, "up": self.neurons, "down": self.hidden}[product]


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
    ) -> None:
        """Set a Linear.

        name: query, key, value, attention_output, up or down.  halves: the packed codes (uint8) and the scale (FP32, (1,)
        or (rows,)) of its weight, or of both halves of a pair (see `bitkd.quant.packed.PackedWeight`).
        bits: 1, or 2 for ternary codes in TWO_BITS.
        """
        tensors = [part.contiguous() for half in halves for part in half]
        pointers = [tensor.data_ptr() for tensor in tensors] + [None] * (4 - len(tensors))
        bias = None if bias is None else bias.detach().float().contiguous()
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
                None if bias is None else bias.data_ptr(),
            )
        )

    def set_norm(self, layer: int, which: int, weight: Tensor, bias: Tensor) -> None:
        """Set the LayerNorm behind attention (which = 0) or behind the FFN (1).  weight, bias: (hidden,)."""
        weight, bias = weight.detach().float().contiguous(), bias.detach().float().contiguous()
        self._check(self._calls.bitkd_set_norm(self._handle, layer, which, weight.data_ptr(), bias.data_ptr()))

    def finish(self) -> None:
        """Lay the weights out."""
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
        """
        positions = (c_int64 * len(offsets))(*offsets)
        threads = torch.get_num_threads() if threads is None else threads
        self._check(self._calls.bitkd_forward(self._handle, hidden.data_ptr(), positions, len(offsets) - 1, threads))
        return hidden

    def linear(self, layer: int, product: str, x: Tensor, threads: int = 1) -> Tensor:
        """One of PRODUCTS alone, with bias, without activation function: FP32 (tokens, outputs).  x: FP32 (tokens, columns)."""
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


@cache
def _open(library: Path) -> Any:
    """The library's functions. torch is imported above: both use the OpenMP runtime that it brings along."""
    calls = ctypes.CDLL(str(library))
    for name, (result, arguments) in _PROTOTYPES.items():
        function = getattr(calls, name)
        function.restype, function.argtypes = result, arguments
    return calls
