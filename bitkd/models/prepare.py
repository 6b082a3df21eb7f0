"""Quantize a model, or split it, and record in its configuration what was done, so that it can be saved and loaded."""

from typing import TypeVar

from torch import nn
from transformers import PreTrainedModel

from bitkd.errors import InputError
from bitkd.models.attention import can_use_score_attention, check_score_attention, use_score_attention
from bitkd.models.encoder import encoder_layers, read_spec, refuse_packed, write_spec
from bitkd.quant.spec import QuantSpec
from bitkd.quant.splitting import is_ternary, split_layers
from bitkd.quant.swap import find_mismatch, is_split, swap_layers
from bitkd.quant.table import FP32, HALF_BITS, is_splittable

M = TypeVar("M", bound=PreTrainedModel)


def prepare(model: M, spec: QuantSpec) -> M:
    """Quantize `model` in place as `spec` says, and return it; its Parameters stay the same objects.

    model: a Hugging Face encoder of a family in `bitkd.quant.layout`, bare or with a head. Quantized are the
    Linears of the encoder's layers, the word embeddings and, as an option, the pooler; the rest stays FP32. A prepared
    model can be prepared again: its latent weights are kept, and 32 bits restore the plain layers.

    `spec` is recorded in `model.config.bitkd`, from which `load_student` builds the model again. From now on the model
    computes its attention by `bitkd.models.attention`, as a loaded one does.
    Raises InputError if the model has no such layers or is packed, or if `spec` does not fit them.
    """
    refuse_packed(model, "quantized")
    encoder_layers(model)
    student = read_spec(model)
    if spec.attention_bits < FP32:
        check_score_attention(model)
    swap_layers(model, spec)
    if can_use_score_attention(model):
        use_score_attention(model)
    student.quant = spec
    write_spec(model, student)
    return model


def split_ternary_(root: nn.Module) -> int:
    """Split every ternary layer inside `root` into a pair of binary ones (see `bitkd.quant.splitting`), in place.

    root: a prepared model, or any module that holds one. The split is recorded in the prepared model's configuration.
    Returns how many layers were split. The Parameters are new ones, so build the optimizer afterwards.
    Raises InputError if there is nothing to split.
    """
    models = [module for module in root.modules() if isinstance(module, PreTrainedModel)]
    # A classifier and its encoder share one configuration.
    recorded = {id(m.config): m for m in reversed(models) if _is_recorded(m) and any(map(is_ternary, m.modules()))}
    count = split_layers(root)
    for model in recorded.values():
        student = read_spec(model)
        quant = student.quant
        if is_splittable(quant.resolved_embedding_bits) and quant.embedding_bits is not None:
            quant.embedding_bits = HALF_BITS
        if is_splittable(quant.weight_bits):
            quant.weight_bits = HALF_BITS
        quant.forward_clip = False
        student.split = True
        write_spec(model, student)
    return count


def check_recorded(model: PreTrainedModel) -> None:
    """Raise InputError if the layers of `model` are not those that its configuration records."""
    refuse_packed(model, "saved as an artifact")
    student = read_spec(model)
    found = find_mismatch(model, student.quant)
    if found is None and student.split != is_split(model):
        found = "the model is not split" if student.split else "the model is split"
    if found is not None:
        raise InputError(
            f"{type(model).__name__} is not what its config.bitkd records: {found}; quantize it by bitkd.prepare and "
            "split it by bitkd.WeightSplitting, which record what they do"
        )


def _is_recorded(model: PreTrainedModel) -> bool:
    return getattr(model.config, "bitkd", None) is not None
