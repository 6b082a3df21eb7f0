"""Pairs of the demo's sentences with a score of how much of their scenes they share."""

import random
from pathlib import Path

from bitkd.data.demo.text import DETAILS, KIND_OF, KINDS, Scene, describe

TRAIN_PAIRS, DEV_PAIRS = 2400, 600
WEIGHTS = {"noun": 2.0, "verb": 1.5} | dict.fromkeys(DETAILS, 0.5)
"""Points of each slot; together 5."""


def write_similarities(folder: Path) -> None:
    """Write train.tsv and dev.tsv into a new folder."""
    folder.mkdir()
    rows = scored_pairs(TRAIN_PAIRS + DEV_PAIRS, seed=4)
    for name, part in (("train", rows[:TRAIN_PAIRS]), ("dev", rows[TRAIN_PAIRS:])):
        lines = ["sentence1\tsentence2\tscore", *(f"{first}\t{second}\t{points}" for first, second, points in part)]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def scored_pairs(count: int, seed: int) -> list[tuple[str, str, float]]:
    """`count` different (sentence, sentence, score from 0 to 5). A pair shares each part of its scenes with a chance of its
    own, so that scores are spread.
    """
    rng = random.Random(seed)
    rows: dict[tuple[str, str], float] = {}
    while len(rows) < count:
        first, shared = _scene(rng), rng.random()
        second = {slot: first[slot] if rng.random() < shared else word for slot, word in _scene(rng).items()}
        rows.setdefault((describe(first), describe(second)), score(first, second))
    return [(*texts, points) for texts, points in rows.items()]


def score(first: Scene, second: Scene) -> float:
    """How much two scenes share, from 0 to 5: all points of a slot for the same word, half of them for another word of the same
    kind (dog and cat, dog and animal) or for a detail that only one scene has.
    """
    return sum(points * _shared(slot, first[slot], second[slot]) for slot, points in WEIGHTS.items())


def _shared(slot: str, word: str | None, other: str | None) -> float:
    if word == other:
        return 1.0
    if slot in DETAILS:
        return 0.5 if word is None or other is None else 0.0
    return 0.5 if KIND_OF.get(word or "", word) == KIND_OF.get(other or "", other) else 0.0


def _scene(rng: random.Random) -> Scene:
    scene: Scene = {}
    for slot, kinds in KINDS.items():
        kind = rng.choice(tuple(kinds))
        scene[slot] = rng.choice((*kinds[kind], kind))
    for slot, words in DETAILS.items():
        scene[slot] = rng.choice((*words, None))
    return scene
