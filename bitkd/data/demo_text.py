"""Sentences of the demo task: scenes that are told in more or less detail, and what follows from what.

A scene has a noun, a verb and up to three details. One sentence is entailed by another if it says no more, contradicts it if
some part excludes the other's (a dog is no cat, a thing at rest does not move), and is neutral if it adds something.
"""

import random
from collections.abc import Iterator

LABELS = ("entailment", "neutral", "contradiction")

Scene = dict[str, str | None]
"""slot -> word; null leaves a detail out."""

NOUNS: dict[str, tuple[str, ...]] = {
    "animal": ("dog", "cat", "horse", "bird"),
    "person": ("woman", "man", "girl", "boy"),
    "vehicle": ("car", "bus", "truck", "bike"),
}
VERBS: dict[str, tuple[str, ...]] = {"moves": ("runs", "turns", "jumps"), "rests": ("sleeps", "waits", "stands")}
KINDS: dict[str, dict[str, tuple[str, ...]]] = {"noun": NOUNS, "verb": VERBS}
DETAILS = {
    "size": ("big", "small"),
    "color": ("red", "blue", "green", "white"),
    "place": ("park", "street", "garden", "house", "school"),
}
KIND_OF = {word: kind for kinds in KINDS.values() for kind, words in kinds.items() for word in words}


def tell(scene: Scene) -> str:
    """The sentence of a scene, such as "a small dog runs in the park ."."""
    words = ["a", scene["size"], scene["color"], scene["noun"], scene["verb"]]
    if scene["place"]:
        words += ["in", "the", scene["place"]]
    return " ".join(word for word in words if word) + " ."


def pairs(count: int, seed: int) -> list[tuple[str, str, str]]:
    """`count` different (premise, hypothesis, label), equally many of each label, in random order."""
    rng = random.Random(seed)
    found: dict[tuple[str, str], str] = {}
    for label in LABELS:
        wanted = len(found) + (count + LABELS.index(label)) // len(LABELS)
        while len(found) < wanted:
            pair = _pair(label, rng)
            if pair is not None:
                found.setdefault(pair, label)
    rows = [(*pair, label) for pair, label in found.items()]
    rng.shuffle(rows)
    return rows


def documents(count: int, sentences: int, seed: int) -> Iterator[list[str]]:
    """Documents of true sentences about one scene each, which lies behind them in full detail."""
    rng = random.Random(seed)
    for _ in range(count):
        scene: Scene = {slot: rng.choice(rng.choice(tuple(kinds.values()))) for slot, kinds in KINDS.items()}
        scene |= {slot: rng.choice(words) for slot, words in DETAILS.items()}
        yield [
            tell(
                {
                    slot: _change(slot, word, "entailment", rng) if rng.random() < 0.4 else word
                    for slot, word in scene.items()
                }
            )
            for _ in range(sentences)
        ]


def _pair(label: str, rng: random.Random) -> tuple[str, str] | None:
    """A premise and what becomes of it when one to three slots change; null where the first one cannot change so."""
    premise = _vague_scene(rng)
    hypothesis = dict(premise)
    slots = rng.sample(list(premise), rng.choice((1, 2, 2, 3)))
    weaker = {"entailment": LABELS[:1], "neutral": LABELS[:2], "contradiction": LABELS}[label]
    for position, slot in enumerate(slots):
        relation = label if position == 0 else rng.choice(weaker)
        word = _change(slot, premise[slot], relation, rng)
        if word == premise[slot]:
            if position == 0:
                return None
            continue
        hypothesis[slot] = word
    return tell(premise), tell(hypothesis)


def _vague_scene(rng: random.Random) -> Scene:
    scene: Scene = {}
    for slot, kinds in KINDS.items():
        kind = rng.choice(tuple(kinds))
        scene[slot] = rng.choice((*kinds[kind], kind, kind))
    for slot, words in DETAILS.items():
        scene[slot] = rng.choice(words) if rng.random() < 0.55 else None
    return scene


def _change(slot: str, word: str | None, relation: str, rng: random.Random) -> str | None:
    """A word for `slot` that stands in `relation` to `word`; `word` itself where there is none."""
    if slot in DETAILS:
        if relation == "entailment":
            return None
        free = [other for other in DETAILS[slot] if other != word]
        return rng.choice(free) if (word is None) == (relation == "neutral") else word
    kinds = KINDS[slot]
    kind = KIND_OF.get(word or "")
    if relation == "entailment":
        return kind or word
    if relation == "neutral":
        return word if kind else rng.choice(kinds[word or ""])
    other_kinds = [other for other in kinds if other not in (kind, word)]
    if kind and rng.random() < 0.5:
        return rng.choice([other for other in kinds[kind] if other != word])
    other = rng.choice(other_kinds)
    return rng.choice(kinds[other]) if kind else other
