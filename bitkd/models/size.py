"""How large a model is, by the two conventions that papers use (they differ by up to 2 MiB at one bit)."""

from collections.abc import Collection

from torch import Tensor, nn
from transformers import PreTrainedModel

from bitkd.models.encoder import encoder_layers, read_spec
from bitkd.models.packed import is_packed
from bitkd.models.unpacked import unpacked_shape
from bitkd.quant.inputs import InputQuantizer
from bitkd.quant.int8 import Int8Weight
from bitkd.quant.modules import SCALE_NAMES, QuantEmbedding, QuantLinear
from bitkd.quant.packed import PackedWeight
from bitkd.quant.packing import TRITS, TWO_BITS, Packing, find_packing
from bitkd.quant.pairs import SplitLinear
from bitkd.quant.table import FP32
from bitkd.store.records import MIB, SizeRecord

HALF = 16
"""Bits of a number that a packed file keeps as it is: fp16."""

INT8 = 8


def measure(model: PreTrainedModel, ternary: Packing = TWO_BITS, int8: Collection[str] = ()) -> SizeRecord:
    """Parameters, bits and sizes of `model`, counted from its own modules and the bits that its config records.

    ternary: the packing of ternary weights.  int8: names of the Linears and tables that a packed file keeps at 8 bits.
    A packed model counts as it is packed; its parameters are those of the student that it was made from.
    """
    if is_packed(model.config):
        modules = dict(model.named_modules())
        int8 = [name for name, module in modules.items() if isinstance(module, Int8Weight)]
        if any(module.packing is TRITS for module in modules.values() if isinstance(module, PackedWeight)):
            ternary = TRITS
        model = unpacked_shape(model)
    quant = read_spec(model).quant
    scales = [p for name, p in model.named_parameters() if name.rpartition(".")[2] in SCALE_NAMES]  # learned ones
    steps = [p for m in model.modules() if isinstance(m, InputQuantizer) for p in m.parameters()]
    parameters = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in (*scales, *steps))
    matrices = [m for m in model.modules() if isinstance(m, QuantLinear | QuantEmbedding) and m.weight_bits < FP32]
    tables = list(model.get_input_embeddings().parameters())
    embeddings = sum(table.numel() for table in tables)
    paper_bits = (parameters - embeddings) * quant.weight_bits + embeddings * quant.resolved_embedding_bits
    encoder = [m for layer in encoder_layers(model) for m in layer.modules() if isinstance(m, nn.Linear)]
    if matrices:
        low = sum(_packed_bits(m, ternary) for m in matrices)
        with_columns = [m for m in model.modules() if isinstance(m, QuantLinear | SplitLinear) and m.column_scales]
        low += sum(m.in_features * FP32 for m in with_columns)
        small: list[Tensor] = [model.get_parameter(f"{name}.weight") for name in int8]
        low += sum(w.numel() * INT8 + w.shape[0] * FP32 for w in small)
        # A pair has one bias in a packed file.
        twice = sum(m.out_features for m in model.modules() if isinstance(m, SplitLinear) and m.first.bias is not None)
        rest = parameters - sum(w.numel() for w in (*(m.weight for m in matrices), *small)) - twice
        file_bits = low + sum(p.numel() for p in steps) * FP32 + rest * HALF
    else:
        file_bits = (parameters + sum(p.numel() for p in steps)) * FP32
    return SizeRecord(
        parameters=parameters,
        precision=quant.precision,
        paper_mib=paper_bits / 8 / MIB,
        file_mib=file_bits / 8 / MIB,
        encoder_bits=sum(m.weight.numel() * getattr(m, "weight_bits", FP32) for m in encoder),
        word_tables=len(tables),
    )


def _packed_bits(module: QuantLinear | QuantEmbedding, ternary: Packing) -> int:
    """Bits of a low-bit weight in a packed file, with its scales in FP32; each row is filled up to whole bytes."""
    rows, columns = module.weight.shape
    scales = rows if module.per_row else 1
    packing = find_packing(module.weight_bits, module.levels, ternary)
    codes = columns * module.weight_bits if packing is None else 8 * packing.columns(columns)
    return rows * codes + FP32 * scales
