"""Sentences of the demo task: scenes that are described in more or less detail, and which entails which.

A scene has a noun, a verb and up to three details. One sentence is entailed by another if it says no more,
contradicts it if some part excludes the other's (a dog is no cat, a thing at rest does not move), and is neutral if
it adds something. Pairs start from the hypothesis, which gets a premise for each label: so a hypothesis alone says
nothing about the label.
"""

import random
from collections.abc import Iterator

LABELS = ("entailment", "neutral", "contradiction")

Scene = dict[str, str | None]
"""Slot -> word; None leaves a detail out."""

NARROWER, WIDER, EXCLUSIVE = "narrower", "wider", "exclusive"

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


def describe(scene: Scene) -> str:
    """The sentence of a scene, such as "a small dog runs in the park ."."""
    words = ["a", scene["size"], scene["color"], scene["noun"], scene["verb"]]
    if scene["place"]:
        words += ["in", "the", scene["place"]]
    return " ".join(word for word in words if word) + " ."


def pairs(count: int, seed: int) -> list[tuple[str, str, str]]:
    """`count` different (premise, hypothesis, label): three in a row per hypothesis, one of each label."""
    rng = random.Random(seed)
    rows: dict[str, list[tuple[str, str, str]]] = {}
    while len(rows) * len(LABELS) < count:
        scene = _vague_scene(rng)
        hypothesis = describe(scene)
        premises = [_premise(scene, label, rng) for label in LABELS]
        rows_of_scene = [(describe(premise), hypothesis, label) for premise, label in zip(premises, LABELS) if premise]
        if len(rows_of_scene) == len(LABELS):
            rows.setdefault(hypothesis, rows_of_scene)
    return [row for triple in rows.values() for row in triple][:count]


def rivals(word: str) -> list[str]:
    """The words that exclude `word` in its place: dog -> cat, horse, bird, person, woman, …"""
    slots = {slot: [w for kind, words in kinds.items() for w in (kind, *words)] for slot, kinds in KINDS.items()}
    slots |= {slot: list(words) for slot, words in DETAILS.items()}
    related = {word, KIND_OF.get(word), *(w for w, kind in KIND_OF.items() if kind == word)}
    return [other for words in slots.values() if word in words for other in words if other not in related]


def documents(count: int, sentences: int, seed: int) -> Iterator[list[str]]:
    """Documents, each of true sentences about one scene; each leaves out or widens some of its details."""
    rng = random.Random(seed)
    for _ in range(count):
        scene: Scene = {slot: rng.choice(rng.choice(tuple(kinds.values()))) for slot, kinds in KINDS.items()}
        scene |= {slot: rng.choice(words) for slot, words in DETAILS.items()}
        yield [
            describe(
                {slot: _change(slot, word, WIDER, rng) if rng.random() < 0.4 else word for slot, word in scene.items()}
            )
            for _ in range(sentences)
        ]


def _premise(hypothesis: Scene, label: str, rng: random.Random) -> Scene | None:
    """A scene that has the relation `label` to the hypothesis; None if there is none.

    One word decides. Up to two more are narrower, so that premises of all labels are about equally long.
    """
    decisive = {"entailment": NARROWER, "neutral": WIDER, "contradiction": EXCLUSIVE}[label]
    more = {"entailment": (0, 0, 1), "neutral": (1, 1, 2), "contradiction": (0, 1, 1)}[label]
    slots = rng.sample(list(hypothesis), len(hypothesis))
    words = {slot: _change(slot, hypothesis[slot], decisive, rng) for slot in slots}
    first = next((slot for slot in slots if words[slot] != hypothesis[slot]), None)
    if first is None:
        return None
    premise = hypothesis | {first: words[first]}
    for slot in rng.sample([slot for slot in slots if slot != first], rng.choice(more)):
        premise[slot] = _change(slot, hypothesis[slot], NARROWER, rng)
    return premise


def _vague_scene(rng: random.Random) -> Scene:
    scene: Scene = {}
    for slot, kinds in KINDS.items():
        kind = rng.choice(tuple(kinds))
        scene[slot] = rng.choice((*kinds[kind], kind, kind))
    for slot, words in DETAILS.items():
        scene[slot] = rng.choice(words) if rng.random() < 0.55 else None
    return scene


def _change(slot: str, word: str | None, relation: str, rng: random.Random) -> str | None:
    """A word for `slot` that has the `relation` to `word`; `word` itself if there is none."""
    if slot in DETAILS:
        if relation == WIDER:
            return None
        free = [other for other in DETAILS[slot] if other != word]
        return rng.choice(free) if (word is None) == (relation == NARROWER) else word
    kinds = KINDS[slot]
    kind = KIND_OF.get(word or "")
    if relation == WIDER:
        return kind or word
    if relation == NARROWER:
        return word if kind else rng.choice(kinds[word or ""])
    other_kinds = [other for other in kinds if other not in (kind, word)]
    if kind and rng.random() < 0.5:
        return rng.choice([other for other in kinds[kind] if other != word])
    other = rng.choice(other_kinds)
    return rng.choice(kinds[other]) if kind else other
