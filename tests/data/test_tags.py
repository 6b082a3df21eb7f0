import pytest

from bitkd.data.tags import TagScheme
from bitkd.errors import InputError

IOB = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
IOBES = [*IOB, "E-PER", "S-PER", "L-PER", "U-PER", "M-PER"]


@pytest.mark.parametrize(
    ("tags", "entities"),
    [
        ("", []),
        ("O O", []),
        ("B-PER I-PER O", [("PER", 0, 2)]),  # IOB2
        ("I-PER I-PER O I-LOC", [("PER", 0, 2), ("LOC", 3, 4)]),  # IOB1: an entity begins with I-
        ("I-PER B-PER I-PER", [("PER", 0, 1), ("PER", 1, 3)]),  # IOB1: B- divides two of one kind
        ("B-PER B-PER", [("PER", 0, 1), ("PER", 1, 2)]),
        ("B-PER I-LOC I-LOC", [("PER", 0, 1), ("LOC", 1, 3)]),  # the kind changes without B-
        ("O I-PER", [("PER", 1, 2)]),
        ("B-PER I-PER E-PER I-PER", [("PER", 0, 3), ("PER", 3, 4)]),
        ("S-PER S-PER E-PER E-PER", [("PER", 0, 1), ("PER", 1, 2), ("PER", 2, 3), ("PER", 3, 4)]),
        ("B-PER M-PER E-PER M-PER", [("PER", 0, 3), ("PER", 3, 4)]),  # BMES
        ("B-PER L-PER U-PER I-PER", [("PER", 0, 2), ("PER", 2, 3), ("PER", 3, 4)]),
    ],
)
def test_entities_are_those_of_conlleval(tags, entities):
    assert TagScheme(IOBES).entities([IOBES.index(tag) for tag in tags.split()]) == entities


def test_without_prefixes_each_run_of_a_tag_is_an_entity():
    labels = ["PER", "O", "E-mail"]
    found = TagScheme(labels).entities([labels.index(tag) for tag in ["PER", "PER", "E-mail", "E-mail", "O", "PER"]])
    assert found == [("PER", 0, 2), ("E-mail", 2, 4), ("PER", 5, 6)]


def test_tags_without_o_are_refused():
    with pytest.raises(InputError, match="have no O"):
        TagScheme(["NOUN", "VERB"])


def test_labels_of_which_only_some_have_a_prefix_are_refused():
    with pytest.raises(
        InputError, match=r"'B-PER', 'I-PER'.* have a prefix and .*'LOC'.* have none; give all labels but O"
    ):
        TagScheme(["O", "B-PER", "I-PER", "LOC"])
