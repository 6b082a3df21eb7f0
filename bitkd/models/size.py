"""How large a model is, by the two conventions that papers use (they differ by up to 2 MiB at one bit)."""

from torch import nn
from transformers import PreTrainedModel

from bitkd.models.encoder import encoder_layers, read_spec
from bitkd.models.packed import is_packed, unpack_student
from bitkd.quant.modules import QuantEmbedding, QuantLinear
from bitkd.quant.table import FP32
from bitkd.store.records import MIB, SizeRecord


def measure(model: PreTrainedModel) -> SizeRecord:
    """Parameters, bits and sizes of `model`, counted from its own modules and the bits that its config records.

    Those of a packed model are those of the student that it was made from.
    """
    if is_packed(model.config):
        model = unpack_student(model)
    quant = read_spec(model).quant
    parameters = sum(p.numel() for p in model.parameters())
    matrices = [m for m in model.modules() if isinstance(m, QuantLinear | QuantEmbedding) and m.weight_bits < FP32]
    quantized = sum(m.weight.numel() for m in matrices)
    stored_bits = sum(m.weight.numel() * m.weight_bits + FP32 * _scales(m) for m in matrices)
    tables = list(model.get_input_embeddings().parameters())
    embeddings = sum(table.numel() for table in tables)
    paper_bits = (parameters - embeddings) * quant.weight_bits + embeddings * quant.resolved_embedding_bits
    encoder = [m for layer in encoder_layers(model) for m in layer.modules() if isinstance(m, nn.Linear)]
    full = sum(m.weight.numel() for m in encoder) if quant.weight_bits == FP32 else 0
    rest_bits = 16 if matrices else FP32
    return SizeRecord(
        parameters=parameters,
        precision=f"W{quant.weight_bits}A{quant.activation_bits}",
        paper_mib=paper_bits / 8 / MIB,
        file_mib=(stored_bits + full * FP32 + (parameters - quantized - full) * rest_bits) / 8 / MIB,
        encoder_bits=sum(m.weight.numel() * getattr(m, "weight_bits", FP32) for m in encoder),
        word_tables=len(tables),
    )


def _scales(module: QuantLinear | QuantEmbedding) -> int:
    rows = module.weight.shape[0]
    return rows if isinstance(module, QuantEmbedding) or module.per_row else 1
