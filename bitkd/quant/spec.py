"""What is quantized, and how. It needs no torch, so that a configuration can be read without it."""

from dataclasses import dataclass

from bitkd.errors import InputError
from bitkd.quant.table import activation_quantizer, weight_quantizer


@dataclass
class QuantSpec:
    """Which parts of a model are quantized, and how. Raises InputError if a value is not supported."""

    weight_bits: int = 32
    """Bits of the Linear weights inside the encoder: 1 (binary), 2 (ternary) or 32 (FP32); the widths are the rows of
    `bitkd.quant.table.WEIGHTS`."""

    embedding_bits: int | None = None
    """Bits of the word embeddings, one scale per row; null means the same as weight_bits."""

    activation_bits: int = 32
    """Bits of the encoder Linears' inputs: 8 (dynamic, symmetric, one scale per token) or 32 (FP32); the widths are the
    rows of `bitkd.quant.table.ACTIVATIONS`."""

    per_row: bool = False
    """One scale per output row of a Linear weight instead of one per matrix."""

    attention_activations: bool = False
    """Quantize queries, keys, values and attention probabilities to activation_bits as well."""

    pooler: bool = False
    """Quantize the pooler's Linear too (as BinaryBERT does; XTC keeps it FP32)."""

    ste_clip: float | None = None
    """Magnitude of a latent weight beyond which its straight-through gradient is zero (TernaryBERT: 2.5); null lets every
    gradient pass."""

    def __post_init__(self) -> None:
        weight_quantizer(self.weight_bits)
        if self.embedding_bits is not None:
            weight_quantizer(self.embedding_bits, "embedding_bits", ", or null for weight_bits")
        activation_quantizer(self.activation_bits)
        if self.ste_clip is not None and not self.ste_clip > 0:
            raise InputError(
                f"ste_clip={self.ste_clip} is unsupported; use a positive number, or null for no clipping "
                "(see QuantSpec.ste_clip)"
            )

    @property
    def resolved_embedding_bits(self) -> int:
        """Bits of the word embeddings: embedding_bits, or weight_bits if that is None."""
        return self.weight_bits if self.embedding_bits is None else self.embedding_bits

    @property
    def attention_bits(self) -> int:
        """Bits of queries, keys, values and attention probabilities."""
        return self.activation_bits if self.attention_activations else 32
