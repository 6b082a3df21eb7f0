"""Which teacher layer and head each student layer and head is compared with."""

from dataclasses import dataclass

from bitkd.distill.layer_map import hidden_map, uniform_map
from bitkd.models.spec import StudentSpec


@dataclass
class Mapping:
    """attention[i]: teacher layer for student layer i.  hidden[j]: teacher hidden state for student hidden state j
    (0 is the embedding output).  heads[i][h]: teacher head for head h of student layer i; null where heads have no
    source, then scores cannot be compared one to one.
    """

    attention: list[int]
    hidden: list[int]
    heads: list[list[int]] | None


def map_student(student: StudentSpec, student_layers: int, teacher: StudentSpec, teacher_layers: int) -> Mapping:
    """Compare like with like: parts copied from the same root layer and head meet; the rest falls back to the
    uniform map of TinyBERT (arXiv:1909.10351), and to head h against head h where both have as many heads.
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
    return Mapping(attention, hidden_map(attention), heads)
