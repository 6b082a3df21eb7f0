"""Descriptions of a student: as settings ask for it (ShapeSpec), and as its config.json records it (StudentSpec). No torch."""

from dataclasses import asdict, dataclass, field, fields
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
    arXiv:2004.04037); heads times width must be a whole number. Not beside `heads` or `intermediate_size`."""

    init: Literal["copy", "random"] = "copy"
    """`copy` takes the source's weights, those of its most important heads and neurons; `random` makes new ones."""

    hidden_size: int | None = None
    """Another hidden size than the source's: only with `init=random`. Losses then learn a width projection."""

    heads: int | None = None
    """Attention heads of every layer. With `init=random` any number that divides the hidden size: 12 heads of a hidden
    size of 312 have 26 features each. A copy keeps this many of the source's heads, at their size. null: as many as
    `width` says, of the source's head size."""

    intermediate_size: int | None = None
    """FFN neurons of every layer. With `init=random` any number; a copy keeps this many of the source's. null: as many as
    `width` says; with another `hidden_size`, in proportion to it."""

    dropout: float = 0.1
    """Dropout of the student's hidden states and attention probabilities while it is trained."""

    hidden_act: Literal["gelu", "gelu_new", "relu", "silu", "tanh"] | None = None
    """Activation function of the student's FFNs, by its name in transformers; null: the source's. A copy keeps its weights.
    `relu` gives the second Linear an input without negative values, which 4 bits and fewer make use of (BinaryBERT, BiT)."""

    def __post_init__(self) -> None:
        check_choices(self, "student.")

    def as_data(self) -> dict[str, Any]:
        """Its settings; without those that are newer than published runs where they are null, so that these keep their hashes."""
        newer = ("heads", "intermediate_size", "hidden_act")
        return {name: value for name, value in asdict(self).items() if name not in newer or value is not None}

    @property
    def leaves_out(self) -> list[str]:
        """The settings, as `student.width=0.5`, by which a copy may leave out heads and neurons of its source."""
        if self.init != "copy":
            return []
        given = {"heads": self.heads, "intermediate_size": self.intermediate_size}
        found = {"width": self.width} if self.width < 1 else {}
        found |= {name: value for name, value in given.items() if value is not None}
        return [f"student.{name}={value}" for name, value in found.items()]


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
    """Width of one attention head; in a copy, the same as in the root."""

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


@dataclass(frozen=True)
class Source:
    """The shape of a model that a student is made from."""

    spec: StudentSpec
    layers: int
    hidden_size: int

    rotary: bool
    """Whether positions rotate pairs of features (RoPE), so that the size of a head must be even."""


def check_shape(shape: ShapeSpec, source: Source) -> None:
    """Raise InputError if a student of `shape` cannot be made of a model like `source`."""
    if shape.layers is not None:
        _check_layers(shape.layers, source.layers)
    heads, given = source.spec.heads * shape.width, (shape.heads, shape.intermediate_size)
    if not 0 < shape.width <= 1 or heads < 1 or abs(heads - round(heads)) > 1e-6:
        allowed = ", ".join(f"{k / source.spec.heads:.4g}" for k in range(1, source.spec.heads + 1))
        raise InputError(
            f"student.width={shape.width} leaves {heads:.4g} of {source.spec.heads} heads; "
            f"it must leave a whole number of heads: use one of {allowed}"
        )
    if shape.width < 1 and given != (None, None):
        raise InputError(
            f"student.width={shape.width} says how many heads and neurons there are, and so do student.heads and "
            "student.intermediate_size; set student.width=1 to use those"
        )
    if not 0 <= shape.dropout < 1:
        raise InputError(f"student.dropout={shape.dropout} is not in [0, 1)")
    if shape.init == "copy":
        _check_copied(shape, source.spec)
    else:
        _check_new(shape, source)


def _check_layers(layers: list[int], count: int) -> None:
    outside = [i for i in layers if not 0 <= i < count]
    if outside or not layers:
        raise InputError(
            f"student.layers={layers} does not fit: layer {outside[0] if outside else 'list is empty'}; "
            f"the source has {count} layers, use numbers from 0 to {count - 1}"
        )
    if sorted(set(layers)) != list(layers):
        raise InputError(f"student.layers={layers} repeats a layer or is out of order; name each layer once, ascending")


def _check_copied(shape: ShapeSpec, source: StudentSpec) -> None:
    if shape.hidden_size is not None:
        raise InputError("student.hidden_size needs student.init=random: weights of another width cannot be copied")
    for name, value, most in (
        ("heads", shape.heads, source.heads),
        ("intermediate_size", shape.intermediate_size, source.neurons),
    ):
        if value is not None and not 1 <= value <= most:
            raise InputError(
                f"student.{name}={value} cannot be copied from a source that has {most}; use 1 to {most}, or student.init=random"
            )


def _check_new(shape: ShapeSpec, source: Source) -> None:
    hidden = source.hidden_size if shape.hidden_size is None else shape.hidden_size
    if shape.intermediate_size is not None and shape.intermediate_size < 1:
        raise InputError(f"student.intermediate_size={shape.intermediate_size} leaves no neuron; use 1 or more")
    if shape.heads is None:
        if hidden < 1 or (shape.hidden_size is not None and hidden % source.spec.head_size):
            raise InputError(
                f"student.hidden_size={hidden} leaves no whole head; use a multiple of the head size {source.spec.head_size}, "
                "or give student.heads, which sets another head size"
            )
        return
    step, what = (2, "heads of an even size, as rotary positions need") if source.rotary else (1, "equal heads")
    allowed = [k for k in range(1, hidden + 1) if hidden % (k * step) == 0]
    if shape.heads not in allowed:
        advice = f"use one of {', '.join(map(str, allowed))}" if allowed else "use another student.hidden_size"
        raise InputError(f"student.heads={shape.heads} does not divide the hidden size {hidden} into {what}; {advice}")
