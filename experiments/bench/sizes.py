"""Sizes of packed files (`make bench SUITE=sizes`), on real files of random weights, which are as large as trained ones."""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from figures import Result, report
from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedModel

from bitkd.models.attention import ATTENTION
from bitkd.models.packed import int8_parts, save_packed
from bitkd.models.prepare import prepare, split_ternary_
from bitkd.models.size import measure
from bitkd.processes.libraries import quieten
from bitkd.quant.packing import TRITS, TWO_BITS, Packing
from bitkd.quant.spec import QuantSpec
from bitkd.store.artifacts import WEIGHTS_FILE
from bitkd.store.records import MIB

BASE = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
MINILM = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}
SHAPES = {
    "BERT-base, 12 layers": (BASE, 12, 12, {1: (14.3, 29), 2: (17.1, 24)}),
    "BERT-base, 6 layers": (BASE, 6, 12, {1: (9.1, 46), 2: (11.9, 35)}),
    "BERT-base, 5 layers": (BASE, 5, 12, {1: (8.2, 50), 2: (11.0, 38)}),
    "MiniLM-L6": (MINILM, 6, 6, {1: (3.2, 27), 2: (4.6, 18)}),
}
"""Name -> sizes, layers, layers of the FP32 model it is held against; bits of word embeddings -> the largest MiB, and how
many times smaller than that model the file must be."""

APART = 2.0
"""Percent that a file may be larger than its counted bits."""


def main() -> int:
    quieten()
    return report("sizes", (one_bit, ternary_and_split))


def one_bit() -> Iterator[Result]:
    """1-bit matrices, 8-bit positions and pooler: the file, against the FP32 teacher's, and against the counted bits."""
    for name, (shape, layers, teacher_layers, limits) in SHAPES.items():
        with torch.device("meta"):
            teacher = new(shape, teacher_layers)
        full = 4 * sum(parameter.numel() for parameter in teacher.parameters())
        for embeddings, (most, times) in limits.items():
            size, apart = packed(student(shape, layers, QuantSpec(weight_bits=1, embedding_bits=embeddings)))
            what = f"{name}, {embeddings}-bit words"
            yield what, size / MIB, "MiB", ("<=", most)
            yield f"{what}, against {teacher_layers} layers in FP32", full / size, "times smaller", (">=", times)
            yield f"{what}, over its counted bits", apart, "%", ("<=", APART)


def ternary_and_split() -> Iterator[Result]:
    """The other students of MiniLM's shape: 2 and 1.6 bits a weight, and pairs of 1-bit halves; against the counted bits."""
    for packing in (TWO_BITS, TRITS):
        size, apart = packed(student(MINILM, 6, QuantSpec(weight_bits=2)), packing)
        yield f"MiniLM-L6, ternary, {packing.name}", size / MIB, "MiB", ("<", 7)
        yield f"MiniLM-L6, ternary, {packing.name}, over its counted bits", apart, "%", ("<=", APART)
    model = student(MINILM, 6, QuantSpec(weight_bits=2))
    split_ternary_(model)
    size, apart = packed(model)
    yield "MiniLM-L6, split", size / MIB, "MiB", ("<", 7)
    yield "MiniLM-L6, split, over its counted bits", apart, "%", ("<=", APART)


def new(shape: dict[str, int], layers: int) -> PreTrainedModel:
    config = BertConfig(num_hidden_layers=layers, **shape)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config, attn_implementation=ATTENTION)
    return model


def student(shape: dict[str, int], layers: int, spec: QuantSpec) -> PreTrainedModel:
    torch.manual_seed(0)
    return prepare(new(shape, layers), spec)


def packed(model: PreTrainedModel, ternary: Packing = TWO_BITS) -> tuple[int, float]:
    """Bytes of the packed file, and by how many percent it is larger than its counted bits."""
    int8 = int8_parts(model)
    with tempfile.TemporaryDirectory() as folder:
        save_packed(model, folder, ternary=ternary, int8=int8)
        size = (Path(folder) / WEIGHTS_FILE).stat().st_size
    return size, 100 * (size / MIB / measure(model, ternary, int8).file_mib - 1)


if __name__ == "__main__":
    sys.exit(main())
