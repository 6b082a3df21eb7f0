"""What a student is: as a user asks for it, and as an artifact remembers it. It needs no torch."""

from dataclasses import dataclass, field

from bitkd.errors import InputError
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


def check_shape(shape: ShapeSpec, source: StudentSpec, source_layers: int) -> None:
    """Raise InputError where `shape` cannot be cut from a model of `source_layers` layers."""
    if shape.init not in ("copy", "random"):
        raise InputError(f"student.init={shape.init} is unknown; use copy or random")
    if shape.layers is not None:
        outside = [i for i in shape.layers if not 0 <= i < source_layers]
        if outside or not shape.layers:
            raise InputError(
                f"student.layers={shape.layers} does not fit: layer {outside[0] if outside else 'list is empty'}; "
                f"the source has {source_layers} layers, use numbers from 0 to {source_layers - 1}"
            )
        if sorted(set(shape.layers)) != list(shape.layers):
            raise InputError(
                f"student.layers={shape.layers} repeats a layer or is out of order; name each layer once, ascending"
            )
    heads = source.heads * shape.width
    if not 0 < shape.width <= 1 or heads < 1 or abs(heads - round(heads)) > 1e-6:
        allowed = ", ".join(f"{k / source.heads:.4g}" for k in range(1, source.heads + 1))
        raise InputError(
            f"student.width={shape.width} leaves {heads:.4g} of {source.heads} heads; "
            f"it must leave a whole number of heads: use one of {allowed}"
        )
    if not 0 <= shape.dropout < 1:
        raise InputError(f"student.dropout={shape.dropout} is not in [0, 1)")
    if shape.hidden_size is not None:
        if shape.init != "random":
            raise InputError("student.hidden_size needs student.init=random: weights of another width cannot be copied")
        if shape.hidden_size < 1 or shape.hidden_size % source.head_size:
            raise InputError(
                f"student.hidden_size={shape.hidden_size} leaves no whole head; "
                f"use a multiple of the head size {source.head_size}"
            )
