"""Sentences of the demo of token classification: scenes whose animals, persons, vehicles and places are entities.

The adjectives before a noun belong to its entity, so the tag of an adjective depends on the noun that follows it.
"""

import random
from pathlib import Path

from bitkd.data.demo.text import DETAILS, NOUNS, VERBS

SETS = {"train": 3000, "dev": 600, "test": 100}
"""File -> sentences in it; test has no tags."""

LONG_SHARE, LONGEST = 0.2, 4
"""Share of the rows that are a text of several scenes, and how many at most."""

TaggedWord = tuple[str, str]


def write_entities(folder: Path) -> None:
    """Write train.conll, dev.conll and test.conll: a word and its tag on each line, a blank line after each row."""
    folder.mkdir(parents=True)
    rows = iter(tagged_rows(sum(SETS.values()), seed=4))
    for name, count in SETS.items():
        lines = []
        for _, row in zip(range(count), rows):
            lines += [word if name == "test" else f"{word} {tag}" for word, tag in row] + [""]
        (folder / f"{name}.conll").write_text("\n".join(lines), encoding="utf-8")


def tagged_rows(count: int, seed: int) -> list[list[TaggedWord]]:
    """`count` different rows of words with tags in IOB2."""
    rng = random.Random(seed)
    rows: dict[tuple[TaggedWord, ...], None] = {}
    while len(rows) < count:
        scenes = rng.randint(2, LONGEST) if rng.random() < LONG_SHARE else 1
        rows.setdefault(tuple(word for _ in range(scenes) for word in _scene(rng)))
    return [list(row) for row in rows]


def _scene(rng: random.Random) -> list[TaggedWord]:
    """Such as "a small dog runs in the red house ."."""
    kind = rng.choice(tuple(NOUNS))
    noun = rng.choice((*NOUNS[kind], kind))
    verb = rng.choice([verb for verbs in VERBS.values() for verb in verbs])
    adjectives = [rng.choice(DETAILS[slot]) for slot in ("size", "color") if rng.random() < 0.5]
    words = [("a", "O"), *_entity([*adjectives, noun], kind), (verb, "O")]
    if rng.random() < 0.6:
        colors = [rng.choice(DETAILS["color"])] if rng.random() < 0.4 else []
        words += [("in", "O"), ("the", "O"), *_entity([*colors, rng.choice(DETAILS["place"])], "place")]
    return [*words, (".", "O")]


def _entity(words: list[str], kind: str) -> list[TaggedWord]:
    return [(word, f"{'I' if number else 'B'}-{kind.upper()}") for number, word in enumerate(words)]
