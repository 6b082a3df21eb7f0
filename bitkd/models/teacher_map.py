"""Which teacher layer and head each student layer and head is compared with."""

from dataclasses import dataclass

from bitkd.distill.layer_map import hidden_map, uniform_map
from bitkd.models.spec import StudentSpec


@dataclass
class TeacherMap:
    """Which part of the teacher each part of the student is compared with."""

    attention: list[int]
    """attention[i]: the teacher layer of student layer i."""

    hidden: list[int]
    """hidden[j]: the teacher hidden state of student hidden state j; 0 is the embedding output."""

    heads: list[list[int]] | None
    """heads[i][h]: the teacher head of head h of student layer i; None if heads have no source, then scores cannot be
    compared one to one."""


def map_student(student: StudentSpec, student_layers: int, teacher: StudentSpec, teacher_layers: int) -> TeacherMap:
    """Compare each layer or head of the student with the teacher's that comes from the same layer or head of the root.

    Without such a source, layers follow the uniform map of TinyBERT (arXiv:1909.10351), and head h is compared with
    head h if both have the same number of heads. Raises InputError if the layers do not divide evenly.
    """
    related = (student.root_layers, student.root_heads) == (teacher.root_layers, teacher.root_heads)
    if related and student.layers and teacher.layers and set(student.layers) <= set(teacher.layers):
        attention = [teacher.layers.index(layer) for layer in student.layers]
    else:
        related = False
        attention = uniform_map(student_layers, teacher_layers)

    heads: list[list[int]] | None = None
    if related and student.kept_heads and teacher.kept_heads:
        sources = [teacher.kept_heads[t] for t in attention]
        if all(set(kept) <= set(source) for kept, source in zip(student.kept_heads, sources)):
            heads = [[source.index(h) for h in kept] for kept, source in zip(student.kept_heads, sources)]
    if heads is None and student.heads == teacher.heads:
        heads = [list(range(student.heads)) for _ in range(student_layers)]
    return TeacherMap(attention, hidden_map(attention), heads)
