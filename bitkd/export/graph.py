"""Builds ONNX graphs out of the layers of quantized students, with standard operators only."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from bitkd.errors import InputError
from bitkd.quant.elastic import Elastic
from bitkd.quant.inputs import AttentionQuantizer, InputQuantizer, PerToken
from bitkd.quant.int8 import Int8Embedding, Int8Linear
from bitkd.quant.modules import QuantLinear
from bitkd.quant.packed import PackedEmbedding, PackedLinear
from bitkd.quant.packing import PACKINGS, Packing, pack_codes, unpack_codes
from bitkd.quant.table import FP32

OPSET = 20
"""Version of the operators: the first one with Gelu."""

_IR = 9
"""Version of the file's format that came with OPSET."""

ZERO = 128
"""The code of 0: unsigned codes are multiplied several times faster than signed ones."""

MASKED = np.finfo(np.float32).min

_SMALL = 64
"""Constants of fewer numbers are kept once for the whole graph."""

_ACTIVATIONS = {
    "gelu": ("Gelu", {}),
    "gelu_new": ("Gelu", {"approximate": "tanh"}),
    "gelu_fast": ("Gelu", {"approximate": "tanh"}),
    "gelu_pytorch_tanh": ("Gelu", {"approximate": "tanh"}),
    "relu": ("Relu", {}),
    "tanh": ("Tanh", {}),
}


class Graph:
    """A graph under construction. Its methods add operators and return the name of their result."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._shared: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._codes: dict[tuple[str, int], tuple[str, str]] = {}
        self._unsigned_codes: dict[str, str] = {}

    def model(
        self, name: str, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        """The finished model, with names, types and shapes of its inputs and outputs."""
        graph = helper.make_graph(self._nodes, name, inputs, outputs, self._constants)
        opset = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opset, ir_version=_IR, producer_name="bitkd")

    # Operators and constants

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """The result of an operator."""
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def ops(self, kind: str, results: int, *inputs: str, **attributes: Any) -> list[str]:
        """The results of an operator that has several."""
        number = len(self._nodes)
        names = [f"{kind}_{number}" if results == 1 else f"{kind}_{number}_{i}" for i in range(results)]
        self._nodes.append(helper.make_node(kind, inputs, names, name=f"{kind}_{number}", **attributes))
        return names

    def result(self, value: str, name: str) -> None:
        """Give a value the name of an output."""
        self._nodes.append(helper.make_node("Identity", [value], [name], name=name))

    def constant(self, value: Any, dtype: Any = None) -> str:
        """A constant of numbers.  value: a tensor, an array, or numbers.  dtype: numpy's, of numbers."""
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value, dtype)
        key = (str(array.dtype), array.shape, array.tobytes() if array.size < _SMALL else b"")
        if array.size < _SMALL and key in self._shared:
            return self._shared[key]
        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name))
        if array.size < _SMALL:
            self._shared[key] = name
        return name

    def floats(self, value: Tensor) -> str:
        """Parameters in FP32; kept in FP16 in the file if they have such values, as those of packed models do."""
        half = _as_half(value)
        return self.constant(value.float()) if half is None else self.cast(self.constant(half), TensorProto.FLOAT)

    def cast(self, x: str, to: int) -> str:
        return self.op("Cast", x, to=to)

    def reshape(self, x: str, *shape: int) -> str:
        """x in another shape; 0 keeps the dimension."""
        return self.op("Reshape", x, self.constant(shape, np.int64))

    def unsqueeze(self, x: str, *axes: int) -> str:
        return self.op("Unsqueeze", x, self.constant(axes, np.int64))

    def range(self, length: str) -> str:
        """0, 1, … below `length`, int64."""
        return self.op("Range", self.constant(0, np.int64), length, self.constant(1, np.int64))

    def scaled(self, x: str, factor: float) -> str:
        return self.op("Mul", x, self.constant(factor, np.float32))

    def activation(self, x: str, name: str) -> str:
        """An activation function, by its name in transformers. Raises InputError if it is unknown."""
        if name in ("silu", "swish"):
            return self.op("Mul", x, self.op("Sigmoid", x))
        if name not in _ACTIVATIONS:
            known = ", ".join([*_ACTIVATIONS, "silu"])
            raise InputError(f"the activation function {name} has no ONNX form here; what has one: {known}")
        kind, attributes = _ACTIVATIONS[name]
        return self.op(kind, x, **attributes)

    # Layers

    def norm(self, module: Any, x: str) -> str:
        """LayerNorm; a module that does nothing leaves x."""
        if isinstance(module, nn.Identity):
            return x
        parameters = [self.floats(module.weight)] + ([] if module.bias is None else [self.floats(module.bias)])
        return self.op("LayerNormalization", x, *parameters, axis=-1, epsilon=module.eps)

    def linear(self, module: Any, x: str) -> str:
        """A Linear of any precision: (..., outputs) in FP32.  x: (..., inputs) in FP32."""
        if isinstance(module, PackedLinear):
            y = self._packed_product(module, x)
        elif isinstance(module, Int8Linear):
            codes = self.cast(self.constant(module.codes.t()), TensorProto.FLOAT)
            y = self.op("MatMul", x, self.op("Mul", codes, self.constant(module.scale)))
        elif isinstance(module, QuantLinear) and module.activation_bits < FP32:
            codes, scale = self.token_codes(module.input_quantizer, x)
            y = self.op("Mul", self.op("MatMul", codes, self.floats(module.weight.t())), scale)
        else:
            y = self.op("MatMul", x, self.floats(module.weight.t()))
        return y if module.bias is None else self.op("Add", y, self.floats(module.bias))

    def embedding(self, module: Any, rows: str) -> str:
        """Rows of a table of any precision, FP32.  rows: their numbers."""
        if isinstance(module, PackedEmbedding):
            values = [self._packed_rows(module, rows, *half) for half in module.halves()]
            return values[0] if len(values) == 1 else self.op("Add", *values)
        if isinstance(module, Int8Embedding):
            codes = self.cast(self.op("Gather", self.constant(module.codes), rows), TensorProto.FLOAT)
            return self.op("Mul", codes, self.unsqueeze(self.op("Gather", self.constant(module.scale), rows), -1))
        half = _as_half(module.weight)
        if half is None:
            return self.op("Gather", self.constant(module.weight), rows)
        return self.cast(self.op("Gather", self.constant(half), rows), TensorProto.FLOAT)

    def attention(
        self,
        query: str,
        key: str,
        value: str,
        mask: str,
        scaling: float,
        quantizer: AttentionQuantizer | None = None,
        bias: str | None = None,
    ) -> str:
        """`bitkd.models.attention.attention_with_scores`: (batch, length, heads * head size).

        query, key, value: (batch, heads, length, head size).  mask: added to the scores.
        """
        if quantizer is not None:
            query = self.quantized(quantizer.query, query)
            key = self.quantized(quantizer.key, key)
            value = self.quantized(quantizer.value, value)
        scores = self.op("MatMul", self.scaled(query, scaling), self.op("Transpose", key, perm=[0, 1, 3, 2]))
        if bias is not None:
            scores = self.op("Add", scores, bias)
        probabilities = self.op("Softmax", self.op("Add", scores, mask), axis=-1)
        if quantizer is not None:
            probabilities = self.quantized(quantizer.probabilities, probabilities)
        output = self.op("Transpose", self.op("MatMul", probabilities, value), perm=[0, 2, 1, 3])
        return self.reshape(output, 0, 0, -1)

    def split_heads(self, x: str, head_size: int) -> str:
        """(batch, heads, length, head size).  x: (batch, length, heads * head size)."""
        return self.op("Transpose", self.reshape(x, 0, 0, -1, head_size), perm=[0, 2, 1, 3])

    def quantized(self, quantizer: InputQuantizer, x: str) -> str:
        """x rounded to its tokens' codes and scaled back."""
        return self.op("Mul", *self.token_codes(quantizer, x))

    def token_codes(self, quantizer: InputQuantizer, x: str) -> tuple[str, str]:
        """The codes and the scales of activations, both FP32 (see `bitkd.quant.functional.token_codes`)."""
        if isinstance(quantizer, Elastic):
            return self._elastic_codes(quantizer, x)
        if not isinstance(quantizer, PerToken):
            raise InputError(f"activations quantized by {type(quantizer).__name__} have no ONNX form")
        key = (x, quantizer.bits)
        if key not in self._codes:
            largest = self.op("ReduceMax", self.op("Abs", x), self.constant([-1], np.int64), keepdims=1)
            limit = self.op("Max", largest, self.constant(1e-30, np.float32))
            scale = self.op("Div", limit, self.constant(2 ** (quantizer.bits - 1) - 1, np.float32))
            self._codes[key] = self.op("Round", self.op("Div", x, scale)), scale
        return self._codes[key]

    def _elastic_codes(self, quantizer: Elastic, x: str) -> tuple[str, str]:
        moved = x if quantizer.shift is None else self.op("Sub", x, self.constant(quantizer.shift.float()))
        scale, levels = self.constant(quantizer.size), quantizer.levels
        lowest, highest = (self.constant(level, np.float32) for level in levels[:2])
        if levels.signs:
            return self.op("Where", self.op("Less", moved, self.constant(0, np.float32)), lowest, highest), scale
        return self.op("Clip", self.op("Round", self.op("Div", moved, scale)), lowest, highest), scale

    # Packed weights

    def _packed_product(self, module: PackedLinear, x: str) -> str:
        """x @ weight^T, in the order of `bitkd.quant.product`, so that equal inputs give equal bits."""
        if module.column_scale is not None:
            x = self.op("Mul", x, self.constant(module.column_scale))
        if module.activation_bits == FP32:
            codes, scale = x, None
        else:
            codes, scale = self.token_codes(module.input_quantizer, x)
            codes = self._unsigned(codes)
        products = []
        for levels, weight_scale in self._terms(module):
            if scale is None:
                product = self.op("MatMul", codes, self.cast(levels, TensorProto.FLOAT))
            else:
                whole = self.op("MatMulInteger", codes, levels, self.constant(ZERO, np.uint8))
                product = self.cast(whole, TensorProto.FLOAT)
            products.append(self.op("Mul", product, self.constant(weight_scale.reshape(-1))))
        y = products[0] if len(products) == 1 else self.op("Add", *products)
        return y if scale is None else self.op("Mul", y, scale)

    def _unsigned(self, codes: str) -> str:
        """Codes of activations as uint8, ZERO for 0."""
        if codes not in self._unsigned_codes:
            shifted = self.op("Add", codes, self.constant(ZERO, np.float32))
            self._unsigned_codes[codes] = self.cast(shifted, TensorProto.UINT8)
        return self._unsigned_codes[codes]

    def _terms(self, module: PackedLinear) -> list[tuple[str, Tensor]]:
        """The weight as a sum of levels * scale: int8 levels, (inputs, outputs), and FP32 scales."""
        (packed, scale), *second = module.halves()
        if not second:
            return [(self._levels(module, self.constant(packed), _levels_of(module.packing)), scale)]
        # The sum and the difference of a pair's halves are read from one tensor, whose digits are those of both.
        other, other_scale = second[0]
        one, two = (unpack_codes(half, module.packing, module.columns) > 0 for half in (packed, other))
        both = self.constant(pack_codes(one + 2 * two.int(), _BOTH))
        mean, half_difference = (scale + other_scale) / 2, (scale - other_scale) / 2
        terms = [(self._levels(module, both, [-2, 0, 0, 2]), mean)]
        if half_difference.any():
            terms.append((self._levels(module, both, [0, 2, -2, 0]), half_difference))
        return terms

    def _levels(self, module: PackedLinear, packed: str, levels: list[int]) -> str:
        """int8, (inputs, outputs). onnxruntime computes it once, when it loads the file.

        packed: uint8, (outputs, bytes).  levels: of each digit.
        """
        return self.op("Transpose", self._unpacked(packed, levels, 2, module.columns), perm=[1, 0])

    def _packed_rows(self, module: PackedEmbedding, rows: str, packed: Tensor, scale: Tensor) -> str:
        found = self.op("Gather", self.constant(packed), rows)
        codes = self.cast(self._unpacked(found, _levels_of(module.packing), 3, module.columns), TensorProto.FLOAT)
        return self.op("Mul", codes, self.unsqueeze(self.op("Gather", self.constant(scale), rows), -1))

    def _unpacked(self, packed: str, levels: list[int], dimensions: int, columns: int) -> str:
        """int8 levels of the digits in the bytes of the last of so many dimensions."""
        table = _digits_of_bytes(levels)
        codes = self.op("Gather", self.constant(table), self.cast(packed, TensorProto.INT32))
        codes = self.reshape(codes, *(0 for _ in range(dimensions - 1)), -1)
        if columns % table.shape[1] == 0:
            return codes
        first, last, axis = (self.constant([number], np.int64) for number in (0, columns, dimensions - 1))
        return self.op("Slice", codes, first, last, axis)


_BOTH = Packing("two digits of 1 bit", base=4, per_byte=4, lowest=0)
"""Both halves of a pair: the first one's digit and twice the second one's."""


def _levels_of(packing: Packing) -> list[int]:
    return [packing.lowest + packing.step * digit for digit in range(packing.base)]


def _digits_of_bytes(levels: list[int]) -> np.ndarray:
    """The level of each digit in each byte: int8, (256, digits in a byte)."""
    per_byte = {len(_levels_of(packing)): packing.per_byte for packing in (*PACKINGS.values(), _BOTH)}[len(levels)]
    digits = np.arange(256)[:, None] // len(levels) ** np.arange(per_byte) % len(levels)
    return np.minimum(levels, np.iinfo(np.int8).max).astype(np.int8)[digits]  # a digit beyond stands for no code


def _as_half(value: Tensor) -> Tensor | None:
    """Numbers in FP16 if that loses nothing, else None."""
    half = value.detach().half()
    return half if torch.equal(half.to(value.dtype), value.detach()) else None
