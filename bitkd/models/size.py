"""How large a model is, by the two conventions that papers use (they differ by up to 2 MiB at one bit)."""

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from bitkd.models.encoder import encoder_layers, spec_of
from bitkd.quant.modules import QuantEmbedding, QuantLinear

MIB = 2**20


@dataclass
class Size:
    """parameters: number of stored weights (both halves of a split count).  precision: such as W1A8.
    paper_mib: every parameter at weight_bits, word embeddings at embedding_bits, as XTC counts.
    file_mib: quantized matrices at their bits with FP32 scales, FP32 ones at 32, the rest in fp16, as a packed
    file would hold it (models without a quantized matrix: everything at 32 bits).
    encoder_bits: bits of the encoder's matrices alone, what multistage and singlestage are made equal in.
    word_tables: 2 where the word embedding is split.
    """

    parameters: int
    precision: str
    paper_mib: float
    file_mib: float
    encoder_bits: int
    word_tables: int


def measure(model: PreTrainedModel) -> Size:
    """Parameters, bits and sizes of `model`, counted from its own modules."""
    quant = spec_of(model).quant
    parameters = sum(p.numel() for p in model.parameters())
    matrices = [m for m in model.modules() if isinstance(m, QuantLinear | QuantEmbedding) and m.weight_bits < 32]
    quantized = sum(m.weight.numel() for m in matrices)
    stored_bits = sum(m.weight.numel() * m.weight_bits + 32 * _scales(m) for m in matrices)
    tables = list(model.get_input_embeddings().parameters())
    words = sum(table.numel() for table in tables)
    paper_bits = (parameters - words) * quant.weight_bits + words * quant.word_bits
    encoder = [m for layer in encoder_layers(model) for m in layer.modules() if isinstance(m, nn.Linear)]
    full = sum(m.weight.numel() for m in encoder) if quant.weight_bits == 32 else 0
    rest_bits = 16 if matrices else 32
    return Size(
        parameters=parameters,
        precision=f"W{quant.weight_bits}A{quant.activation_bits}",
        paper_mib=paper_bits / 8 / MIB,
        file_mib=(stored_bits + full * 32 + (parameters - quantized - full) * rest_bits) / 8 / MIB,
        encoder_bits=sum(m.weight.numel() * getattr(m, "weight_bits", 32) for m in encoder),
        word_tables=len(tables),
    )


def _scales(module: QuantLinear | QuantEmbedding) -> int:
    rows = module.weight.shape[0]
    return rows if isinstance(module, QuantEmbedding) or module.per_row else 1
