"""How stages are shown in pictures: a colour, and a few words for the student that a stage makes."""

from collections.abc import Iterable
from dataclasses import dataclass

from bitkd.quant.table import FP32, WEIGHTS
from bitkd.stages.kinds import Kind

_OF_BITS = {32: "#b18be0", 2: "#6fa8dc", 1: "#e57373"}
_OTHER_BITS = ("#4db6ac", "#d4c14a", "#8d9fe0", "#c48b6a", "#5fb3d9")
"""For all other widths."""


@dataclass(frozen=True)
class Look:
    """How a stage is shown."""

    place: tuple[int, float]
    """Sorts a legend: teacher, students from wide to narrow weights, rows."""

    label: str
    """For a legend, such as 1-bit."""

    colour: str
    has_metric: bool = True
    """False for General KD, whose student has no head and therefore no metric of the task."""


TEACHER = Look((0, 0), "teacher", "#b8b8b8")
SPLITTING = Look((2, -1.5), "splitting", "#7cc47f")
ROWS = Look((3, 0), "rows", "#dddddd")


def look_of(kind: Kind, weight_bits: int, in_chain: bool = False) -> Look:
    """The look of a stage of this kind whose student has weights of this width.

    in_chain: whether it is part of the pipeline's own chain; a fine-tuned stage of the chain is a student, not a teacher.
    """
    if kind.makes_rows:
        return ROWS
    if kind.splits:
        return SPLITTING
    if not kind.keeps_head:
        return Look((1, 0), f"task-agnostic {bits_title(weight_bits)}", "#f5a623", has_metric=False)
    if kind.fine_tunes and not in_chain:
        return TEACHER
    title = bits_title(weight_bits)
    label = f"task-specific {title}" if weight_bits == FP32 else title
    return Look((2, -weight_bits), label, colour_of_bits(weight_bits))


def in_order(looks: Iterable[Look]) -> list[Look]:
    """Each look once, in a legend's order."""
    return sorted(set(looks), key=lambda look: look.place)


def bits_title(weight_bits: int) -> str:
    """A width for people: FP32, or such as 2-bit."""
    if weight_bits == FP32:
        return "FP32"
    return WEIGHTS[weight_bits].title if weight_bits in WEIGHTS else f"{weight_bits}-bit"


def colour_of_bits(weight_bits: int) -> str:
    """The colour of a student with weights of this width."""
    return _OF_BITS.get(weight_bits) or _OTHER_BITS[weight_bits % len(_OTHER_BITS)]
