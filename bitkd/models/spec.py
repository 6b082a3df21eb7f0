"""Descriptions of a student: as settings ask for it (ShapeSpec), and as its config.json records it (StudentSpec). No torch."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from bitkd.errors import InputError, check_choices
from bitkd.quant.spec import NEWER, QuantSpec

SPEC_FORMAT = 3
"""Version of the StudentSpec in config.json; models of another version are refused."""


@dataclass
class ShapeSpec:
    """The student's shape, relative to the model that it is made from."""

    layers: list[int] | None = None
    """Source layers that make up the student, 0-based and ascending; null keeps all of them."""

    width: float = 1.0
    """Share of attention heads and FFN neurons kept in every layer. Head size and hidden size stay (DynaBERT,
    arXiv:2004.04037); heads times width must be a whole number."""

    init: Literal["copy", "random"] = "copy"
    """`copy` takes the source's weights, those of its most important heads and neurons; `random` makes new ones."""

    hidden_size: int | None = None
    """Another hidden size than the source's: only with `init=random`. Losses then learn a width projection."""

    dropout: float = 0.1
    """Dropout of the student's hidden states and attention probabilities while it is trained."""

    def __post_init__(self) -> None:
        check_choices(self, "student.")


@dataclass(frozen=True)
class Architecture:
    """What a model can be made into, beside what every pipeline needs."""

    pooler: bool
    """Whether it has a pooler, which `quant.pooler` quantizes."""

    narrowing: str | None
    """Why heads and neurons cannot be left out; None if they can."""


@dataclass
class StudentSpec:
    """What a saved student is: its shape, where its parts came from, and its precision.

    The root is the model that a student, and the students of that student, were copied from.
    """

    root_layers: int
    """Encoder layers of the root."""

    root_heads: int
    """Attention heads in each layer of the root."""

    head_size: int
    """Width of one attention head, the same as in the root."""

    heads: int
    """Attention heads in each layer."""

    neurons: int
    """FFN neurons in each layer."""

    layers: list[int] | None = None
    """layers[i]: the root's layer that layer i was copied from; None for random weights. Losses compare the two."""

    kept_heads: list[list[int]] | None = None
    """kept_heads[i]: the root's heads in layer i; None for random weights."""

    quant: QuantSpec = field(default_factory=QuantSpec)
    """How it is quantized; for a split student, how its halves are quantized."""

    split: bool = False
    """Whether it has layers that are pairs of binary ones."""

    trained_head: bool = False
    """Whether its head was trained, or copied from a trained one."""

    format: int = SPEC_FORMAT
    """Version of this record."""


def check_spec_data(content: Any, where: str) -> None:
    """Check that plain data has the fields of a StudentSpec in this version.

    where: what it was read from, for the message.  Raises InputError if it was written by another version.
    """
    advice = "run its pipeline again"
    if not isinstance(content, dict) or not isinstance(content.get("quant"), dict):
        raise InputError(f"{where} is damaged: it describes no student; {advice}")
    if (found := content.get("format")) != SPEC_FORMAT:
        raise InputError(
            f"{where} was saved by another version of bitkd (format {found}, this one reads {SPEC_FORMAT}); {advice}"
        )
    for part, spec in ((content, StudentSpec), (content["quant"], QuantSpec)):
        expected = {item.name for item in fields(spec)}
        unknown, missing = sorted(set(part) - expected), sorted(expected - set(part) - set(NEWER))
        if unknown or missing:
            raise InputError(
                f"{where} was saved by another version of bitkd or changed by hand (unknown: {', '.join(unknown) or 'none'}; "
                f"missing: {', '.join(missing) or 'none'}); {advice}"
            )


def check_shape(shape: ShapeSpec, source: StudentSpec, source_layers: int) -> None:
    """Raise InputError if `shape` cannot be made of a model of `source_layers` layers."""
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
