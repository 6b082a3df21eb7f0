"""What a student is: as a user asks for it, and as an artifact remembers it. It needs no torch."""

from dataclasses import dataclass, field

from bitkd.quant.spec import QuantSpec


@dataclass
class ShapeSpec:
    """The student that a user asks for, relative to the model it is cut from."""

    layers: list[int] | None = None
    """Source layers that make up the student, 0-based and ascending; null keeps all of them."""

    width: float = 1.0
    """Share of attention heads and FFN neurons kept in every layer. Head size and hidden size stay (DynaBERT,
    arXiv:2004.04037); heads times width must be a whole number."""

    init: str = "copy"
    """`copy` takes the source's weights, most important heads and neurons first; `random` starts afresh."""

    hidden_size: int | None = None
    """Another hidden size than the source's: only with `init=random`. Losses then learn a width projection."""

    dropout: float = 0.1
    """Dropout of the student's hidden states and attention probabilities while it is trained."""


@dataclass
class StudentSpec:
    """What an artifact remembers of a student: its shape, where its parts came from, and its precision.

    `layers[i]` and `kept_heads[i]` name the layer and the heads of the root model that layer i was copied from;
    both are null for a randomly initialized student. Losses use them to compare like with like.
    """

    root_layers: int
    root_heads: int
    head_size: int
    heads: int
    neurons: int
    layers: list[int] | None = None
    kept_heads: list[list[int]] | None = None
    quant: QuantSpec = field(default_factory=QuantSpec)
    split: bool = False
    trained_head: bool = False
    format: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.quant, dict):
            self.quant = QuantSpec(**self.quant)
