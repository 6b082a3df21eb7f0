"""What quantized layers need not compute twice: the codes of an input that several layers read, and the codes of weights that
do not change.

Nothing of it is used in a compiled graph: the compiler finds equal computations itself.
"""

import threading
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bitkd.quant.inputs import InputQuantizer, PerToken
from bitkd.quant.table import FP32


class QuantizedInput(NamedTuple):
    """An input as a product reads it."""

    operand: Tensor
    """What is multiplied: the codes over `shrink_of` its type, or the input itself if that is not quantized."""

    scale: Tensor | None
    """Of the codes; None if the input is not quantized."""

    kept: Tensor | None
    """The codes in int8, for the gradient of the weight; None if the input is not quantized, and without a gradient."""


class WeightTerm(NamedTuple):
    """A weight, or a part of one: levels * scale."""

    levels: Tensor
    """(rows, columns), in the type that is multiplied."""

    scale: Tensor
    """() or (rows, 1)."""

    kept: Tensor | None
    """The levels in int8, for the gradient of the input; None if they do not fit, and without a gradient."""


class QuantizedWeight(NamedTuple):
    """A weight as a product reads it."""

    terms: list[WeightTerm]

    column: Tensor | None
    """The scale of its columns, (columns,), by which the input is multiplied; None if there is none."""


def shrink_of(dtype: torch.dtype) -> int:
    """What codes of inputs are divided by before they are multiplied: up to 127 they are exact in FP16 and bf16, but their sums
    would overflow FP16."""
    return 128 if dtype == torch.float16 else 1


class _LastInput(threading.local):
    """The input that this thread quantized last."""

    found: "_SharedInput | None" = None


class _SharedInput:
    """A quantized input that other layers may read too.

    reader: the layer that it was made for. A layer that comes for the second time makes its own: the values may have changed
    where no version counts it.
    """

    def __init__(self, reader: nn.Module, x: Tensor, settings: tuple[Any, ...], result: QuantizedInput) -> None:
        self.result = [result]
        self.x = weakref.ref(x, _Emptied(self.result))
        self.version = x._version
        self.settings = settings
        self.readers = [weakref.ref(reader)]

    def take(self, reader: nn.Module, x: Tensor, settings: tuple[Any, ...]) -> QuantizedInput | None:
        """The quantized input if it is that of `x`, unchanged, and new to `reader`."""
        same = self.x() is x and self.version == x._version and self.settings == settings
        if not same or any(known() is reader for known in self.readers):
            return None
        self.readers.append(weakref.ref(reader))
        return self.result[0]


class _Emptied:
    """Empties a list when what a weak reference stands for is gone; the reference holds the list only, so there is no cycle."""

    def __init__(self, values: list[QuantizedInput]) -> None:
        self.values = values

    def __call__(self, _: Any) -> None:
        self.values.clear()


_LAST = _LastInput()


def read_input(
    reader: nn.Module, quantizer: InputQuantizer, x: Tensor, dtype: torch.dtype, keep: bool
) -> QuantizedInput:
    """`x` quantized, in `dtype`. Layers that read the very same tensor one after another, as queries, keys and values do, share
    it if their quantizers have no state and the same width.

    reader: the layer.  keep: whether a gradient will be asked for.
    """
    if type(quantizer) is not PerToken or torch.compiler.is_compiling() or x.is_inference():
        return _quantized(quantizer, x, dtype, keep)
    settings = (quantizer.bits, dtype, keep)
    found = None if _LAST.found is None else _LAST.found.take(reader, x, settings)
    if found is None:
        found = _quantized(quantizer, x, dtype, keep)
        _LAST.found = _SharedInput(reader, x, settings, found)
    return found


def _quantized(quantizer: InputQuantizer, x: Tensor, dtype: torch.dtype, keep: bool) -> QuantizedInput:
    if quantizer.bits == FP32:
        operand = x.detach().to(dtype)
        return QuantizedInput(operand, None, None)
    with torch.no_grad():
        codes, scale = quantizer.codes(x)
        shrink = shrink_of(dtype)
        operand = codes.to(dtype) / shrink if shrink > 1 else codes.to(dtype)
        return QuantizedInput(operand, scale, codes.to(torch.int8) if keep else None)


class HeldTerms:
    """A quantized weight, kept until what it was made from changes in a way that its version counts. Copies and pickles hold
    nothing."""

    def __init__(self) -> None:
        self._key: Any = None
        self._sources: tuple[Tensor, ...] = ()
        self._weight = QuantizedWeight([], None)

    def get(
        self, sources: tuple[Tensor, ...], settings: tuple[Any, ...], make: Callable[[], QuantizedWeight]
    ) -> QuantizedWeight:
        """The weight made from `sources` under `settings`, by `make` if it is not that of the last call."""
        key = (settings, [(version_of(w), w.data_ptr(), w.dtype) for w in sources])
        same = len(sources) == len(self._sources) and all(a is b for a, b in zip(sources, self._sources, strict=True))
        if not same or key != self._key:
            with torch.inference_mode(False):  # tensors made in inference mode could not be used in training afterwards
                self._weight = make()
            self._sources, self._key = sources, key
        return self._weight

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


class HoldsCodes:
    """A layer whose weights' codes can be held."""

    held: HeldTerms | None = None


def hold_codes(model: nn.Module) -> None:
    """From now on quantize each Linear weight of `model` once, until `release_codes`; layers that hold already go on.

    Call it where weights do not change, as in validation or between optimizer steps; results are exactly the same. Changes
    in place and other Parameters are noticed even so, but the step of a fused optimizer is not, and writing through
    `weight.data` may not be. The word embeddings hold nothing: only the rows that are looked up are quantized, fewer than
    the whole table.
    """
    for module in model.modules():
        if isinstance(module, HoldsCodes) and module.held is None:
            module.held = HeldTerms()


def release_codes(model: nn.Module) -> None:
    """End `hold_codes`, and free what was held."""
    for module in model.modules():
        if isinstance(module, HoldsCodes):
            module.held = None


def version_of(tensor: Tensor) -> int:
    """How often a tensor was changed in place; tensors of inference mode do not count."""
    return 0 if tensor.is_inference() else tensor._version
