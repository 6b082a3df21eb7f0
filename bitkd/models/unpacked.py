"""From a packed model back to the student that was packed."""

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bitkd.errors import InputError
from bitkd.models.encoder import read_spec, write_spec
from bitkd.models.fit import fit_to_names
from bitkd.models.heads import head_of
from bitkd.models.marks import is_packed
from bitkd.models.student import build_blank
from bitkd.quant.int8 import Int8Weight
from bitkd.quant.latent import ATTEMPTS, latent_weights, same_scales
from bitkd.quant.modules import SCALE_NAMES
from bitkd.quant.packed import PackedLinear, PackedWeight, quantized_weight
from bitkd.quant.packing import FOUR_LEVELS


@torch.no_grad()
def unpack_student(model: PreTrainedModel) -> PreTrainedModel:
    """The simulated student of a packed model, in FP32 and eval mode, with the logits of its packed layers, bit for bit: it can
    be trained and saved by `save_student`, and packed again to the very bits. Raises InputError if the model is not packed, or
    if no weights are found whose computed scales are the packed ones, as may be with scales of columns.
    """
    new = unpacked_shape(model)
    quant = read_spec(model).quant
    modules = dict(new.named_modules())
    state = model.state_dict()
    for path, module in model.named_modules():
        if isinstance(module, PackedWeight):
            weights = _latent(path, module, modules[path], quant.learned_scales)
        elif isinstance(module, Int8Weight):
            weights = [module.dequantized()]
        else:
            continue
        for name, _ in module.named_buffers(recurse=False):
            del state[f"{path}.{name}"]
        bias = state.pop(f"{path}.bias", None)
        for part, weight in zip(_parts_of(module), weights, strict=True):
            state[f"{path}.{part}weight"] = weight
            if bias is not None:
                state[f"{path}.{part}bias"] = bias / len(weights)
    scales = {name: scale for name, scale in new.state_dict().items() if name.rpartition(".")[2] in SCALE_NAMES}
    new.load_state_dict(state | scales)
    return new.eval()


def _latent(path: str, packed: PackedWeight, layer: Any, learned: bool) -> list[Tensor]:
    """The weights of an unpacked layer, which are put into it with its learned scales.  path: its name, for the message."""
    learned = learned and isinstance(packed, PackedLinear)
    parts = [layer] if not packed.split else [layer.first, layer.second]
    device = parts[0].weight.device  # the packed model may be on another
    found, column = packed.quantized()
    halves = [(codes.to(device), scale.to(device)) for codes, scale in found]
    column = None if column is None else column.to(device)
    one_solution = learned or (column is None and packed.packing != FOUR_LEVELS)
    for attempt in range(1 if one_solution else ATTEMPTS):
        weights = latent_weights(halves, column, packed.packing.bits, packed.packing.digits, learned, attempt)
        for part, weight, (_, scale) in zip(parts, weights, halves, strict=True):
            part.weight.copy_(weight)
            if learned:
                part.weight_scale.copy_(scale.reshape(part.weight_scale.shape))
        if learned and column is not None:
            layer.column_scale.copy_(column)
        made, other = quantized_weight(layer)
        if same_scales([*chain(*halves), column], [*chain(*made), other]):
            return weights
    raise InputError(
        f"{path} cannot be unpacked: no weights were found whose computed codes and scales are exactly the packed ones; use the "
        "artifact that was exported"
    )


def unpacked_shape(model: PreTrainedModel) -> PreTrainedModel:
    """A student like `unpack_student` of a packed model, with other weights. Raises InputError if the model is not packed."""
    if not is_packed(model.config):
        raise InputError(f"{type(model).__name__} is not packed; pack_student gives a packed model")
    new = build_blank(model.config, head_of(model))
    fit_to_names(new, _unpacked_names(model))
    write_spec(new, read_spec(new))
    return new


def _unpacked_names(model: nn.Module) -> list[str]:
    """Names in the state dict of the simulated student, those of learned scales aside."""
    names = list(model.state_dict())
    for path, module in model.named_modules():
        if isinstance(module, PackedWeight | Int8Weight):
            own = {f"{path}.{name}" for name, _ in module.named_buffers(recurse=False)}
            names = [name for name in names if name not in own]
            names += [f"{path}.{part}weight" for part in _parts_of(module)]
    return names


def _parts_of(module: nn.Module) -> list[str]:
    """How the names of an unpacked layer's halves begin, after the layer's."""
    return ["first.", "second."] if isinstance(module, PackedWeight) and module.split else [""]
