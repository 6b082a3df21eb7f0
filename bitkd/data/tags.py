"""Tags of words, and the entities that they make up.

Tags may be written as IOB1, IOB2, IOBES, BILOU or BMES (`I-PER`, `B-PER`, `E-PER`, `S-PER`, ...), or without a prefix (`PER`).
Entities are counted as the script of the CoNLL shared tasks, conlleval, counts them (arXiv:cs/0306050).
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bitkd.errors import InputError, shorten

OUTSIDE = "O"
"""The tag of a word that belongs to no entity."""


class Entity(NamedTuple):
    """Neighbouring words that are one entity."""

    kind: str
    """What it is, such as PER."""

    first: int
    """Number of its first word in the sentence."""

    end: int
    """Number of the word after its last one."""


class _Tag(NamedTuple):
    kind: str | None
    begins: bool
    ends: bool


_NO_TAG = _Tag(None, False, False)
_PREFIXED = re.compile(r"[BIMESLU]-.")


class TagScheme:
    """What a task's tags mean. Raises InputError if the tag O is not among the labels, or if only some have a prefix.

    labels: names of the tags in the order of the model's outputs.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        if OUTSIDE not in labels:
            raise InputError(
                f"labels {shorten(list(labels))} have no {OUTSIDE}, the tag of words outside of every entity; add it to the "
                "task's labels (tags without it, such as parts of speech, make no entities and are not supported)"
            )
        self.labels = list(labels)
        self.outside = self.labels.index(OUTSIDE)
        inside = [label for label in labels if label != OUTSIDE]
        # Without prefixes, each run of one tag is an entity: the name of a kind may look like a prefix (E-mail).
        with_prefix = [label for label in inside if _PREFIXED.match(label)]
        prefixed = len(with_prefix) == len(inside)
        if not prefixed and any(label[0] in "BI" for label in with_prefix):  # every scheme has one of these two
            without = [label for label in inside if label not in with_prefix]
            raise InputError(
                f"labels {shorten(with_prefix)} have a prefix and {shorten(without)} have none; give all labels but {OUTSIDE} a "
                "prefix (B-, I-, M-, E-, S-, L- or U-), or none of them"
            )
        self._tags = [self._read(label, prefixed) for label in labels]

    @staticmethod
    def _read(label: str, prefixed: bool) -> _Tag:
        if label == OUTSIDE:
            return _NO_TAG
        return _Tag(label[2:], label[0] in "BSU", label[0] in "ESLU") if prefixed else _Tag(label, False, False)

    def entities(self, tags: Sequence[int]) -> list[Entity]:
        """The entities of a sentence.  tags: position in `labels` of each word's tag.

        An entity begins at a tag that begins one (B-), after one that ends one (E-), after O, and where the kind changes:
        so an I- that follows O begins an entity too.
        """
        return list(self._entities(tags))

    def _entities(self, tags: Sequence[int]) -> Iterator[Entity]:
        first, before = 0, _NO_TAG
        for place, number in enumerate([*tags, self.outside]):
            tag = self._tags[number]
            if tag.kind != before.kind or tag.begins or before.ends:
                if before.kind is not None:
                    yield Entity(before.kind, first, place)
                first = place
            before = tag
