"""Generated English for the demo task: a small grammar of scenes and the logic of what follows from what.

A sentence states a scene by slots (who did what to whom, where and how). Two scenes are compared slot by slot, as in
natural logic (MacCartney & Manning 2009), so each label is computed. A pair starts from its hypothesis, whose shape
knows nothing of the label, and the premise is derived from it: the hypothesis alone therefore says nothing.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

LABELS = ("entailment", "neutral", "contradiction")

_TAXONOMY: dict[str, tuple[str, ...]] = {
    "person": ("adult", "child"),
    "animal": ("pet", "bird"),
    "object": ("vehicle", "toy"),
    "adult": ("man", "woman"),
    "child": ("boy", "girl"),
    "pet": ("dog", "cat"),
    "bird": ("duck", "owl"),
    "vehicle": ("car", "truck"),
    "toy": ("ball", "doll"),
    "several": ("two", "three"),
    "outdoors": ("in the park", "on the beach"),
    "indoors": ("in the kitchen", "in the hall"),
}
_PARENT = {child: parent for parent, children in _TAXONOMY.items() for child in children}
_SIZES, _AGES, _STATES = ("big", "small"), ("old", "young"), ("clean", "dirty")
_COLOURS = ("red", "blue", "green")
_VERBS = (("pushed", "pulled"), ("found", "lost"), ("loved", "hated"), ("followed", "avoided"))
_MANNERS = ("happily", "sadly")
_RIVAL_SETS = (_SIZES, _AGES, _STATES, _COLOURS, *_VERBS, _MANNERS)
_QUALITIES = {"person": _SIZES + _AGES, "animal": _SIZES + _AGES + _STATES, "object": _SIZES + _STATES + _COLOURS}
_PLURALS = {"person": "people", "man": "men", "woman": "women", "child": "children"}

PASSIVE, FRONTED, SAID = 0.25, 0.25, 0.5

EQUAL, NARROWER, WIDER, EXCLUSIVE, UNRELATED = "=", "<", ">", "|", "#"


@dataclass(frozen=True)
class Scene:
    """One statement by its slots; null = left unsaid. negative: no such scene took place ("no dog pushed …")."""

    agent: str
    verb: str
    patient: str
    agent_number: str = "a"
    agent_quality: str | None = None
    patient_number: str = "a"
    patient_quality: str | None = None
    place: str | None = None
    manner: str | None = None
    negative: bool = False


_SLOTS = tuple(name for name in Scene.__dataclass_fields__ if name != "negative")


def ancestors(word: str) -> list[str]:
    """The wider terms of a word, nearest first: duck -> bird, animal."""
    found: list[str] = []
    while word in _PARENT:
        word = _PARENT[word]
        found.append(word)
    return found


def compare_slot(slot: str, p: str | None, h: str | None) -> str:
    """The relation of the premise's value p to the hypothesis' value h: EQUAL, NARROWER, WIDER, …"""
    if p == h:
        return EQUAL
    if h is None or (p is not None and h in ancestors(p)):
        return NARROWER
    if p is None or p in ancestors(h):
        return WIDER
    if slot == "verb" or slot.endswith("quality"):
        return EXCLUSIVE if any(p in rivals and h in rivals for rivals in _RIVAL_SETS) else UNRELATED
    return EXCLUSIVE


def compare(p: Scene, h: Scene) -> str:
    """The relation of the states of affairs of p and h, negations left aside."""
    found = {compare_slot(slot, getattr(p, slot), getattr(h, slot)) for slot in _SLOTS} - {EQUAL}
    if EXCLUSIVE in found:
        return EXCLUSIVE
    return found.pop() if len(found) == 1 else (UNRELATED if found else EQUAL)


def label(p: Scene, h: Scene) -> str:
    """What premise p says about hypothesis h, both about the same occasion."""
    relation = compare(p, h)
    if not p.negative and not h.negative:
        if relation == EXCLUSIVE:
            return "contradiction"
        return "entailment" if relation in (EQUAL, NARROWER) else "neutral"
    if p.negative and h.negative:
        return "entailment" if relation in (EQUAL, WIDER) else "neutral"
    denied = (EQUAL, WIDER) if p.negative else (EQUAL, NARROWER)
    return "contradiction" if relation in denied else "neutral"


def kind(noun: str) -> str:
    """The top of a word's branch: person, animal or object for nouns."""
    return [noun, *ancestors(noun)][-1]


_WORDS = tuple(dict.fromkeys((*_TAXONOMY, *_PARENT)))


def values(slot: str, scene: Scene) -> tuple[str | None, ...]:
    """What may stand in a slot of this scene."""
    if slot in ("agent", "patient"):
        return tuple(w for w in _WORDS if kind(w) == kind(getattr(scene, slot)))
    if slot.endswith("quality"):
        return (None, *_QUALITIES[kind(getattr(scene, slot.removesuffix("_quality")))])
    if slot.endswith("number"):
        return ("a",) if scene.negative and slot == "agent_number" else ("a", "several", *_TAXONOMY["several"])
    if slot == "verb":
        return tuple(verb for pair in _VERBS for verb in pair)
    return (None, *(_MANNERS if slot == "manner" else (w for w in _WORDS if kind(w) in ("outdoors", "indoors"))))


def edit(scene: Scene, relations: str, rng: random.Random) -> Scene:
    """The scene with one slot's value replaced by one that stands in one of `relations` to it, if there is any."""
    slots = [slot for slot in _SLOTS if slot != "agent_number" or not scene.negative]
    for slot in rng.sample(slots, len(slots)):
        old = getattr(scene, slot)
        fits = [v for v in values(slot, scene) if compare_slot(slot, v, old) in relations]
        if fits:
            return replace(scene, **{slot: rng.choice(fits)})
    return scene


def swap_roles(scene: Scene) -> Scene:
    """Who did it and whom it was done to, exchanged."""
    return replace(
        scene,
        agent=scene.patient,
        agent_quality=scene.patient_quality,
        agent_number="a" if scene.negative else scene.patient_number,
        patient=scene.agent,
        patient_quality=scene.agent_quality,
        patient_number=scene.agent_number,
    )


def random_scene(rng: random.Random, said: float = 0.5, negative: float = 0.2) -> Scene:
    """said: the probability of each optional slot; negative: that of a negated statement."""
    nouns = [w for w in _WORDS if kind(w) in _QUALITIES]
    people = [w for w in nouns if kind(w) != "object"]
    scene = Scene(agent=rng.choice(people), verb="", patient=rng.choice(nouns), negative=rng.random() < negative)
    for slot in _SLOTS[3:] + ("verb",):
        if slot == "verb" or rng.random() < said:
            scene = replace(scene, **{slot: rng.choice([v for v in values(slot, scene) if v is not None])})
    return scene


def derive_premise(hypothesis: Scene, target: str, rng: random.Random) -> Scene | None:
    """A premise that says `target` about the hypothesis; null where the hypothesis hardly admits one."""
    for _ in range(40):
        scene = replace(hypothesis, negative=rng.random() < (0.5 if hypothesis.negative else 0.15))
        if scene.negative:
            scene = replace(scene, agent_number="a")
        narrow, wide = rng.choice(((0, 1), (1, 0), (2, 0), (1, 1), (2, 1), (3, 0)))
        if target == "contradiction" and not scene.negative and not hypothesis.negative:
            swappable = kind(scene.patient) != "object" and rng.random() < 0.3
            scene = swap_roles(scene) if swappable else edit(scene, EXCLUSIVE, rng)
        for _ in range(narrow):
            scene = edit(scene, NARROWER, rng)
        for _ in range(wide):
            scene = edit(scene, WIDER + UNRELATED, rng)
        if scene != hypothesis and label(scene, hypothesis) == target:
            return scene
    return None


def render(scene: Scene, rng: random.Random) -> str:
    """The scene in words: active or passive, the place first or last."""
    agent = _phrase(scene.agent, "no" if scene.negative else scene.agent_number, scene.agent_quality)
    patient = _phrase(scene.patient, scene.patient_number, scene.patient_quality)
    manner = [scene.manner] if scene.manner else []
    if not scene.negative and rng.random() < PASSIVE:
        was = "was" if scene.patient_number == "a" else "were"
        words = [patient, was, *manner, scene.verb, "by", agent]
    else:
        words = [agent, *manner, scene.verb, patient]
    if scene.place:
        place = scene.place if " " in scene.place else scene.place
        words = [place, *words] if rng.random() < FRONTED else [*words, place]
    return " ".join(words) + " ."


def _phrase(noun: str, number: str, quality: str | None) -> str:
    if number not in ("a", "no"):
        noun = _PLURALS.get(noun, noun + "s")
    words = [quality, noun] if quality else [noun]
    if number == "a" and words[0][0] in "aeiou":
        number = "an"
    return " ".join([number, *words])


@dataclass(frozen=True)
class Pair:
    """One labelled row of the task."""

    sentence1: str
    sentence2: str
    label: str


def pairs(rng: random.Random) -> Iterator[list[Pair]]:
    """Endless triples of labelled pairs: one hypothesis, a premise for each label; no hypothesis twice."""
    seen = set()
    while True:
        scene = random_scene(rng, SAID)
        hypothesis = render(scene, rng)
        premises = [derive_premise(scene, target, rng) for target in LABELS]
        if hypothesis not in seen and None not in premises:
            seen.add(hypothesis)
            yield [Pair(render(p, rng), hypothesis, target) for p, target in zip(premises, LABELS) if p]


def document(rng: random.Random) -> list[str]:
    """Several true statements about one fully described scene, each sentence once."""
    scene = random_scene(rng, said=0.9, negative=0.0)
    sentences = [render(scene, rng)]
    for _ in range(rng.randint(4, 8)):
        told = scene
        if rng.random() < 0.2:
            told = replace(edit(told, EXCLUSIVE, rng), negative=True, agent_number="a")
        for _ in range(rng.randint(1, 4)):
            told = edit(told, WIDER, rng)
        sentences.append(render(told, rng))
    return list(dict.fromkeys(sentences))
