"""Low-bit stand-ins for nn.Linear and nn.Embedding, with the same parameter names.

Simulated quantization here multiplies integer-valued tensors and scales afterwards: FP32 sums of products of
small integers are exact, so training, evaluation and integer execution agree bit for bit, and so do a ternary
layer and the two binary layers that it was just split into.
"""

from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bitkd.quant.functional import binarize, binary_codes, clip_gradient, ternarize, ternary_codes, token_codes


class _Format(NamedTuple):
    """How a product is quantized.  whole: multiply whole numbers only, even where the halves' scales differ."""

    weight_bits: int
    activation_bits: int
    per_row: bool
    clip: float | None
    whole: bool


def _weight_terms(weights: tuple[Tensor, ...], form: _Format) -> list[tuple[Tensor, Tensor]]:
    """The quantized weight as a sum of levels * scale; two weights count as their sum.  scale: () or (rows, 1)."""
    if form.weight_bits == 32:
        return [(weights[0], torch.ones((), device=weights[0].device))]
    if form.weight_bits == 2:
        return [ternary_codes(weights[0], form.per_row)]
    if len(weights) == 1:
        return [binary_codes(weights[0], form.per_row)]
    (first, a1), (second, a2) = (binary_codes(w, form.per_row) for w in weights)
    both, apart, middle, offset = first + second, first - second, (a1 + a2) / 2, (a1 - a2) / 2
    if not form.whole:  # one product with a 4-level matrix; middle = 0 only where both scales are 0
        return [(both + apart * (offset / middle.clamp_min(1e-30)).to(apart.dtype), middle)]
    if not offset.any():  # freshly split
        return [(both, middle)]
    return [(both, middle), (apart, offset)]


class _LowBitProduct(torch.autograd.Function):
    """x @ quantized(weight)^T in FP32 or wider; the gradient is that of quantize-dequantize, straight through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, form: _Format, *weights: Tensor) -> Tensor:
        device, dtype = x.device.type, weights[0].dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        wide = torch.promote_types(dtype, torch.float32)
        with torch.autocast(device, enabled=False):
            codes, x_scale = token_codes(x) if form.activation_bits == 8 else (x, None)
            # Codes up to 127 are exact in FP16 and bf16, but their sums would overflow FP16.
            shrink = 128 if dtype == torch.float16 and x_scale is not None else 1
            operand = codes.to(dtype) if shrink == 1 else codes.to(dtype) / shrink
            terms = _weight_terms(weights, form)
            y = None
            for levels, scale in terms:
                product = nn.functional.linear(operand, levels.to(dtype)).to(wide).mul_(scale.reshape(-1))
                y = product if y is None else y.add_(product)
            assert y is not None
            ctx.form, ctx.dtype, ctx.x_dtype, ctx.halves = form, dtype, x.dtype, len(weights)
            saved = operand if x_scale is None else codes.to(torch.int8)
            flat = [tensor for term in terms for tensor in term]
            ctx.save_for_backward(saved, x_scale, *weights, *flat)
            return y if x_scale is None else y.mul_(x_scale * shrink)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved, x_scale, *rest = ctx.saved_tensors
        weights, flat = rest[: ctx.halves], rest[ctx.halves :]
        grad_x = shared = None
        with torch.autocast(grad.device.type, enabled=False):
            narrow = grad.to(ctx.dtype)
            if ctx.needs_input_grad[0]:
                value = sum(levels * scale for levels, scale in zip(flat[::2], flat[1::2], strict=True))
                grad_x = (narrow @ value.to(ctx.dtype)).to(ctx.x_dtype)
            if any(ctx.needs_input_grad[2:]):  # both halves of a split see the same input and the same output
                x = saved if x_scale is None else saved * x_scale
                shared = narrow.reshape(-1, narrow.shape[-1]).t() @ x.reshape(-1, x.shape[-1]).to(ctx.dtype)
            grads = [
                clip_gradient(shared.to(w.dtype), w, ctx.form.clip) if needed and shared is not None else None
                for w, needed in zip(weights, ctx.needs_input_grad[2:], strict=True)
            ]
        return grad_x, None, *grads


def _linear(x: Tensor, form: _Format, bias: Tensor | None, *weights: Tensor) -> Tensor:
    y = _LowBitProduct.apply(x, form, *weights)
    if bias is not None:
        y = y + bias
    autocast = torch.is_autocast_enabled(x.device.type)
    return y.to(torch.get_autocast_dtype(x.device.type) if autocast else weights[0].dtype)


class QuantLinear(nn.Linear):
    """nn.Linear with a 1-bit, 2-bit or FP32 weight and an 8-bit or FP32 input; the bias stays FP32.

    y = (x_codes @ w_codes^T) * w_scale * x_scale + bias. `weight` holds the latent weights that are trained.
    per_row: one scale for each output row instead of one for the matrix.
    gradient_clip: latent weights beyond it get no gradient; null lets every gradient pass.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        weight_bits: int = 1,
        activation_bits: int = 32,
        per_row: bool = False,
        gradient_clip: float | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.weight_bits = weight_bits
        self.activation_bits = activation_bits
        self.per_row = per_row
        self.gradient_clip = gradient_clip

    @classmethod
    def from_float(cls, module: nn.Linear, **settings: Any) -> Self:
        """A QuantLinear that holds the very Parameters of `module`; settings: the keyword arguments of
        `__init__`."""
        new = cls(module.in_features, module.out_features, module.bias is not None, device="meta", **settings)
        new.weight, new.bias = module.weight, module.bias
        return new.train(module.training)

    def format(self, whole: bool = False) -> _Format:
        return _Format(self.weight_bits, self.activation_bits, self.per_row, self.gradient_clip, whole)

    def forward(self, input: Tensor) -> Tensor:
        if self.weight_bits == 32 and self.activation_bits == 32:
            return super().forward(input)
        return _linear(input, self.format(), self.bias, self.weight)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, W{self.weight_bits}A{self.activation_bits}, per_row={self.per_row}"


class QuantEmbedding(nn.Embedding):
    """nn.Embedding with a 1-bit, 2-bit or FP32 table and one scale per row; only the rows looked up are
    quantized."""

    per_row = True

    def __init__(self, *args: Any, weight_bits: int = 1, gradient_clip: float | None = None, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.weight_bits = weight_bits
        self.gradient_clip = gradient_clip

    @classmethod
    def from_float(cls, module: nn.Embedding, **settings: Any) -> Self:
        """A QuantEmbedding that holds the very Parameter of `module`; settings: weight_bits,
        gradient_clip."""
        new = cls(**embedding_options(module), device="meta", **settings)
        new.weight = module.weight
        return new.train(module.training)

    def forward(self, input: Tensor) -> Tensor:
        rows = super().forward(input)
        if self.weight_bits == 32:
            return rows
        quantize = binarize if self.weight_bits == 1 else ternarize
        return quantize(rows, per_row=True, clip=self.gradient_clip)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, W{self.weight_bits}"


def embedding_options(module: nn.Embedding) -> dict[str, Any]:
    """The keyword arguments that nn.Embedding needs to be like `module`."""
    names = (
        "num_embeddings",
        "embedding_dim",
        "padding_idx",
        "max_norm",
        "norm_type",
        "scale_grad_by_freq",
        "sparse",
    )
    return {name: getattr(module, name) for name in names}


def _blank(parameter: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.zeros_like(parameter), requires_grad=parameter.requires_grad)


class SplitLinear(nn.Module):
    """Two binary QuantLinears on the same input, outputs summed: what a ternary layer becomes by weight
    splitting (BinaryBERT, arXiv:2012.15701).

    In eval mode y = x_scale * (m * (P1 + P2) + d * (P1 - P2)) + biases, where P1 and P2 are the products with
    the two code matrices and m, d the halves of the scales' sum and difference. Training needs a single
    product.
    """

    def __init__(self, first: QuantLinear, second: QuantLinear) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.train(first.training)

    @classmethod
    def from_float(cls, module: nn.Linear, **settings: Any) -> Self:
        """Halves shaped like `module`, all zeros: to be filled by `load_state_dict`."""
        halves = []
        for _ in range(2):
            half = QuantLinear.from_float(module, weight_bits=1, **settings)
            half.weight = _blank(module.weight)
            half.bias = None if module.bias is None else _blank(module.bias)
            halves.append(half)
        return cls(*halves)

    @property
    def in_features(self) -> int:
        return self.first.in_features

    @property
    def out_features(self) -> int:
        return self.first.out_features

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.first.bias is None else self.first.bias + self.second.bias
        whole = not self.training and self.first.activation_bits == 8
        return _linear(input, self.first.format(whole), bias, self.first.weight, self.second.weight)


class SplitEmbedding(nn.Module):
    """Two binary QuantEmbeddings of the same ids, rows summed (see SplitLinear)."""

    def __init__(self, first: QuantEmbedding, second: QuantEmbedding) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.train(first.training)

    @classmethod
    def from_float(cls, module: nn.Embedding, **settings: Any) -> Self:
        """Tables shaped like `module`, all zeros: to be filled by `load_state_dict`."""
        halves = []
        for _ in range(2):
            half = QuantEmbedding.from_float(module, weight_bits=1, **settings)
            half.weight = _blank(module.weight)
            halves.append(half)
        return cls(*halves)

    @property
    def num_embeddings(self) -> int:
        return self.first.num_embeddings

    @property
    def embedding_dim(self) -> int:
        return self.first.embedding_dim

    @property
    def padding_idx(self) -> int | None:
        return self.first.padding_idx

    def forward(self, input: Tensor) -> Tensor:
        return self.first(input) + self.second(input)
