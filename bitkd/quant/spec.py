"""What is quantized, and how. It needs no torch, so that a configuration can be read without it."""

from dataclasses import asdict, dataclass
from typing import Any

from bitkd.errors import InputError
from bitkd.quant.table import LEVELS, TERNARY, activation_quantizer, weight_quantizer


@dataclass
class QuantSpec:
    """Which parts of a model are quantized, and how. What is not supported is refused."""

    weight_bits: int = 32
    """Bits of the Linear weights inside the encoder: 1 (binary), 2 (ternary, or four values: `levels`) or 32 (FP32)."""

    embedding_bits: int | None = None
    """Bits of the word embeddings, one scale per row: those of weights, 4 or 8; null means the same as weight_bits."""

    activation_bits: int = 32
    """Bits of the encoder Linears' inputs: 8 (dynamic, symmetric, one scale per token), 4, 2 or 1 (a learned step for all
    tokens, and a learned shift per channel), or 32 (FP32)."""

    per_row: bool = False
    """One scale per output row of a Linear weight instead of one per matrix."""

    column_scales: bool = False
    """One scale per input column of a Linear weight as well (OneBit, arXiv:2402.11295): row times column. It multiplies the
    input before its codes, so products stay whole numbers. Needs per_row."""

    learned_scales: bool = False
    """Train the scales of Linear weights (LSQ, arXiv:1902.08153; ParetoQ, arXiv:2502.02631), at `scales_lr` and without decay,
    from where they would be computed; otherwise they are computed from the weights at every step. Those of words are always
    computed. A ternary weight with learned scales cannot be split."""

    levels: int = LEVELS[0]
    """Values of a 2-bit weight, over its scale: 3 (ternary: -1, 0, 1) or 4 (-3, -1, 1, 3: ParetoQ, arXiv:2502.02631), of words
    too. Four levels take the same two bits. They have no zero and cannot be split."""

    attention_activations: bool = False
    """Quantize queries, keys, values and attention probabilities to activation_bits as well."""

    pooler: bool = False
    """Quantize the pooler's Linear too (as BinaryBERT does; XTC keeps it FP32)."""

    ste_clip: float | None = None
    """Magnitude of a latent weight beyond which its straight-through gradient is zero (TernaryBERT: 2.5); null lets every
    gradient pass."""

    forward_clip: bool = False
    """Clip ternary weights to ±ste_clip before their threshold and scale are computed too, as TernaryBERT's code does: in a BERT
    with large weights this changes a few codes in 10,000. Only for 2 bits, and with ste_clip."""

    def __post_init__(self) -> None:
        if self.levels not in LEVELS:
            raise InputError(f"levels={self.levels} is unsupported; use 3 (ternary) or 4")
        weight_quantizer(self.weight_bits)
        if self.embedding_bits is not None:
            weight_quantizer(self.embedding_bits, "embedding_bits", ", or null for weight_bits")
        activation_quantizer(self.activation_bits)
        if self.ste_clip is not None and not self.ste_clip > 0:
            raise InputError(f"ste_clip={self.ste_clip} is unsupported; use a positive number, or null for no clipping")

        if self.forward_clip and (
            self.ste_clip is None or TERNARY not in (self.weight_bits, self.resolved_embedding_bits)
        ):
            raise InputError(
                f"forward_clip=true with ste_clip={_text(self.ste_clip)} and {self.weight_bits}-bit weights is unsupported; it "
                f"clips {TERNARY}-bit weights to ±ste_clip, so set both, or forward_clip=false"
            )

        if self.levels != LEVELS[0] and TERNARY not in (self.weight_bits, self.resolved_embedding_bits):
            raise InputError(
                f"levels={self.levels} with {self.weight_bits}-bit weights is unsupported; it says how {TERNARY} bits are "
                f"used, so set weight_bits={TERNARY}, or leave it at {LEVELS[0]}"
            )
        for name in ("column_scales", "learned_scales"):
            if getattr(self, name) and weight_quantizer(self.weight_bits) is None:
                raise InputError(
                    f"{name}=true with weight_bits={self.weight_bits} has no weights to scale; set weight_bits to 1 or 2, or "
                    f"{name}=false"
                )
        if self.column_scales and not self.per_row:
            raise InputError("column_scales=true needs per_row=true: row times column")
        others = {"column_scales": self.column_scales, "learned_scales": self.learned_scales, "levels": self.levels}
        if self.forward_clip and (
            beside := [name for name, value in others.items() if value not in (False, LEVELS[0])]
        ):
            raise InputError(
                f"forward_clip=true with {beside[0]}={_text(others[beside[0]])} is unsupported; it clips ternary weights as "
                f"TernaryBERT's code quantizes them, so use forward_clip=false, or {beside[0]} as it is by default"
            )

    @property
    def precision(self) -> str:
        """Bits of weights and activations, such as W1A8."""
        return f"W{self.weight_bits}A{self.activation_bits}"

    @property
    def resolved_embedding_bits(self) -> int:
        """Bits of the word embeddings: embedding_bits, or weight_bits if that is None."""
        return self.weight_bits if self.embedding_bits is None else self.embedding_bits

    def clips(self, bits: int) -> bool:
        """Whether weights of this width are clipped before they are quantized."""
        return self.forward_clip and bits == TERNARY

    @property
    def learns(self) -> bool:
        """Whether quantizers have parameters of their own, which are trained with OptimSpec.scales_lr."""
        row = activation_quantizer(self.activation_bits)
        return (self.learned_scales and weight_quantizer(self.weight_bits) is not None) or (
            row is not None and row.learns
        )

    @property
    def attention_bits(self) -> int:
        """Bits of queries, keys, values and attention probabilities."""
        return self.activation_bits if self.attention_activations else 32


def _text(value: Any) -> str:
    """As it is written in settings."""
    return "null" if value is None else str(value).lower()


NEWER = {"forward_clip": False, "column_scales": False, "learned_scales": False, "levels": LEVELS[0]}
"""Fields that were added since models and fingerprints were first written, and their values where they change nothing."""


def quant_data(spec: QuantSpec) -> dict[str, Any]:
    """`spec` as plain data, without NEWER fields that change nothing: equal settings are written as they always were."""
    return {name: value for name, value in asdict(spec).items() if name not in NEWER or value != NEWER[name]}
