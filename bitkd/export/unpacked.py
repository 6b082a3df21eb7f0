"""A quantized student as a plain Hugging Face checkpoint: its weights in FP32, in the stock class of its family."""

import copy

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from bitkd.errors import InputError
from bitkd.models.encoder import ffn_neurons, read_spec
from bitkd.models.heads import head_of
from bitkd.models.spec import StudentSpec
from bitkd.quant.inputs import InputQuantizer
from bitkd.quant.layout import Layout, layers_of
from bitkd.quant.modules import SCALE_NAMES, QuantEmbedding, QuantLinear
from bitkd.quant.pairs import SplitEmbedding, SplitLinear

_OWN_SETTINGS = ("bitkd", "quantization_config", "transformers_weights")
"""Of a student's configuration, which a stock model does not know."""


@torch.no_grad()
def make_stock(model: PreTrainedModel) -> PreTrainedModel:
    """The stock model of a simulated student, in eval mode: weights are codes · scale in FP32, both halves of a pair summed.

    Activations are not quantized in it, so its logits are those of the student within
    `bitkd.quant.swap.unquantized_activations`, up to rounding. Heads and neurons that a narrow student lacks are zeros,
    which changes no output. The student is left unchanged.
    Raises InputError if a stock model cannot compute what the student does.
    """
    _check(model)
    stock = _new_stock(model)
    state = {name: tensor.clone() for name, tensor in _float_weights(model).items()}
    _widen(state, model)
    missing, unexpected = stock.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise InputError(
            f"a {type(model).__name__} of transformers has other weights than this student (missing: {sorted(missing)[:3]}, "
            f"unexpected: {sorted(unexpected)[:3]}); use --format packed"
        )
    return stock.eval()


def _check(model: PreTrainedModel) -> None:
    layout, spec = layers_of(model).layout, read_spec(model)
    if layout.first_lacks and spec.layers and spec.layers[0] > 0:
        raise InputError(
            f"the student begins with layer {spec.layers[0]} of its source, which has a norm that the first layer of a "
            f"{layout.family} does not have: no stock model computes what it does; use --format packed"
        )
    if any(isinstance(module, InputQuantizer) and [*module.parameters()] for module in model.modules()):
        raise InputError(
            f"the student's {spec.quant.activation_bits}-bit activations are shifted and have steps that it learned: no stock "
            "model computes what it does; use --format packed or onnx"
        )


def _new_stock(model: PreTrainedModel) -> PreTrainedModel:
    config: PretrainedConfig = copy.deepcopy(model.config)
    for name in _OWN_SETTINGS:
        config.__dict__.pop(name, None)
    auto = head_of(model).auto_class
    stock: PreTrainedModel = auto.from_config(config, attn_implementation="eager", dtype=torch.float32)
    if hasattr(stock.base_model, "pooler") and getattr(model.base_model, "pooler", None) is None:
        stock.base_model.pooler = None  # type: ignore[assignment]
    return stock


def _float_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """The state dict of the student as a stock model would have it, but for the widths."""
    state = dict(model.state_dict())
    for name, module in model.named_modules():
        if isinstance(module, SplitLinear | SplitEmbedding):
            for key in [key for key in state if key.startswith(f"{name}.")]:
                del state[key]
            state[f"{name}.weight"] = module.dequantized()
            if getattr(module.first, "bias", None) is not None:
                state[f"{name}.bias"] = module.first.bias + module.second.bias  # type: ignore[operator]
        elif isinstance(module, QuantLinear | QuantEmbedding) and f"{name}.weight" in state:
            state[f"{name}.weight"] = module.dequantized()
            for scale in SCALE_NAMES:
                state.pop(f"{name}.{scale}", None)
    return state


def _widen(state: dict[str, Tensor], model: PreTrainedModel) -> None:
    """Fill the weights of narrow layers up with zeros, in place.

    An absent head has queries, keys and values of zero, and its outputs meet zeros; an absent neuron meets zeros as well.
    """
    spec, layers = read_spec(model), layers_of(model)
    names = {module: name for name, module in model.named_modules()}
    for number, layer in enumerate(layers.modules):
        _widen_layer(state, f"{names[layer]}.", layers.layout, spec, number, model.config)


def _widen_layer(
    state: dict[str, Tensor], prefix: str, layout: Layout, spec: StudentSpec, number: int, config: PretrainedConfig
) -> None:
    heads, neurons = config.num_attention_heads, ffn_neurons(config)
    # A family with a bias per head (MPNet) has those of all heads, so each head goes to the place that it came from.
    kept = spec.kept_heads[number] if spec.kept_heads else list(range(spec.heads))
    features = torch.tensor([head * spec.head_size + i for head in kept for i in range(spec.head_size)])

    def put(path: str, dim: int, places: Tensor, size: int, blocks: int = 1) -> None:
        for kind in ("weight", "bias"):
            key = f"{prefix}{path}.{kind}"
            if key in state and (kind == "weight" or dim == 0):
                state[key] = _spread(state[key], dim, places, size, blocks)

    if spec.heads < heads:
        for path in dict.fromkeys(layout.projections):
            put(path, 0, features, heads * spec.head_size, blocks=3 if layout.fused else 1)
        put(layout.attention_output, 1, features, heads * spec.head_size)
    if spec.neurons < neurons:
        places = torch.arange(spec.neurons)
        put(layout.up, 0, places, neurons, blocks=2 if layout.gated else 1)
        put(layout.down, 1, places, neurons)


def _spread(tensor: Tensor, dim: int, places: Tensor, size: int, blocks: int) -> Tensor:
    """A tensor with zeros between, so that each of `blocks` equal parts of dimension `dim` has `size` entries."""
    shape = list(tensor.shape)
    shape[dim] = blocks * size
    every = torch.cat([places + block * size for block in range(blocks)])
    return tensor.new_zeros(shape).index_copy_(dim, every, tensor)
