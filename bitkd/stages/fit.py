"""Whether the attention of student and teacher can be compared and exchanged as a loss asks for. It imports no torch."""

from collections.abc import Collection
from typing import Literal

from bitkd.errors import InputError
from bitkd.stages.spec import ATTENTION_MAP, LossSpec

Place = Literal["map", "output"]
"""A tensor of the student that the teacher's can replace."""

SPANS: dict[str, dict[Place, tuple[float, float]]] = {
    "map": {"map": (0.0, 1.0)},
    "output": {"output": (0.0, 1.0)},
    "gradual": {"output": (0.0, 1 / 3), "map": (1 / 3, 1.0)},
}
"""loss.intervention -> place -> when the teacher's weight begins to fall from 1 and when it is 0, as parts of the time that
`loss.intervention_share` gives."""


def check_fit(loss: LossSpec, terms: Collection[str], matched: bool, student_width: int, teacher_width: int) -> None:
    """Raise InputError if maps are compared or exchanged and heads have no source, or outputs and widths differ.

    terms: the active ones.  matched: whether each head of the student has a source in the teacher.
    student_width, teacher_width: hidden sizes.
    """
    heads = "the student has heads that come from none of the teacher's; give it as many heads"
    if ATTENTION_MAP in terms and not matched and loss.unmatched_heads == "relation":
        raise InputError(
            f"loss.extra.attention_map compares attention maps head by head, but {heads}, or use "
            "loss.unmatched_heads=group_mean"
        )
    setting = f"loss.intervention={loss.intervention} puts"
    places = SPANS[loss.intervention] if loss.intervention else {}
    if "map" in places and not matched:
        raise InputError(f"{setting} attention maps of the teacher in place of the student's, but {heads}, or use null")
    if "output" in places and student_width != teacher_width:
        raise InputError(
            f"{setting} outputs of the teacher's attention in place of the student's, but the hidden sizes differ "
            f"({student_width} and {teacher_width}); use map, or null"
        )
