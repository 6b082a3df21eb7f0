"""What is quantized, and how. It needs no torch, so that a configuration can be read without."""

from dataclasses import dataclass

from bitkd.errors import InputError


@dataclass
class QuantSpec:
    """Which parts of a model are quantized, and how."""

    weight_bits: int = 32
    """Bits of the Linear weights inside the encoder: 1 (binary), 2 (ternary) or 32 (FP32)."""

    embedding_bits: int | None = None
    """Bits of the word embeddings, one scale per row; null means the same as weight_bits."""

    activation_bits: int = 32
    """Bits of the encoder Linears' inputs: 8 (dynamic, symmetric, one scale per token) or 32 (FP32)."""

    per_row: bool = False
    """One scale per output row of a Linear weight instead of one per matrix."""

    attention_activations: bool = False
    """Quantize queries, keys, values and attention probabilities to activation_bits as well."""

    pooler: bool = False
    """Quantize the pooler's Linear too (as BinaryBERT does; XTC keeps it FP32)."""

    gradient_clip: float | None = None
    """No gradient for latent weights whose magnitude exceeds this (TernaryBERT: 2.5); null lets every
    gradient pass."""

    def __post_init__(self) -> None:
        weights = "1 (binary), 2 (ternary) or 32"
        if self.weight_bits not in (1, 2, 32):
            raise InputError(
                f"weight_bits={self.weight_bits} is unsupported; use {weights} (see QuantSpec.weight_bits)"
            )
        if self.embedding_bits not in (None, 1, 2, 32):
            raise InputError(
                f"embedding_bits={self.embedding_bits} is unsupported; use {weights}, or null for weight_bits "
                "(see QuantSpec.embedding_bits)"
            )
        if self.activation_bits not in (8, 32):
            raise InputError(
                f"activation_bits={self.activation_bits} is unsupported; use 8 or 32 (see QuantSpec.activation_bits)"
            )
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise InputError(
                f"gradient_clip={self.gradient_clip} is unsupported; use a positive number, or null for no clipping "
                "(see QuantSpec.gradient_clip)"
            )

    @property
    def word_bits(self) -> int:
        """Bits of the word embeddings."""
        return self.weight_bits if self.embedding_bits is None else self.embedding_bits
