"""Questions about two scenes of the demo, in SQuAD's form: where something is, or what is somewhere.

A context describes two scenes of different kinds (an animal, a person, a vehicle) in different places, so that a question
has one answer. Some ask for what is not there.
"""

import json
import random
from pathlib import Path
from typing import Any

from bitkd.data.demo.text import DETAILS, KIND_OF, NOUNS, VERBS, Scene, describe

CONTEXTS = {"train": 1000, "dev": 250, "test": 20}
QUESTIONS = 3
"""Questions about each context."""

NO_ANSWER_SHARE = 0.25


def write_questions(folder: Path) -> None:
    """Write train.json and dev.json, and test.json without answers; the same bytes each time."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(4)
    for name, count in CONTEXTS.items():
        paragraphs = [_paragraph(f"{name}-{i}", rng) for i in range(count)]
        if name == "test":
            for paragraph in paragraphs:
                paragraph["qas"] = [{key: found[key] for key in ("id", "question")} for found in paragraph["qas"]]
        content = {"version": "v2.0", "data": [{"title": "scenes", "paragraphs": paragraphs}]}
        (folder / f"{name}.json").write_text(json.dumps(content) + "\n", encoding="utf-8")


def _paragraph(name: str, rng: random.Random) -> dict[str, Any]:
    scenes = _scenes(rng)
    context = " ".join(map(describe, scenes))
    questions = [_question(scenes, context, rng) for _ in range(QUESTIONS)]
    return {"context": context, "qas": [{"id": f"{name}-{i}", **question} for i, question in enumerate(questions)]}


def _scenes(rng: random.Random) -> list[Scene]:
    """Two scenes of different kinds in different places."""
    kinds, places = rng.sample(list(NOUNS), 2), rng.sample(DETAILS["place"], 2)
    return [
        {
            "noun": rng.choice(NOUNS[kind]),
            "verb": rng.choice(rng.choice(tuple(VERBS.values()))),
            "size": rng.choice((None, *DETAILS["size"])),
            "color": rng.choice((None, *DETAILS["color"])),
            "place": place,
        }
        for kind, place in zip(kinds, places)
    ]


def _question(scenes: list[Scene], context: str, rng: random.Random) -> dict[str, Any]:
    """A question about one scene, or about what no scene has."""
    scene = rng.choice(scenes)
    noun, place = str(scene["noun"]), str(scene["place"])
    asks_place, answerable = rng.random() < 0.5, rng.random() >= NO_ANSWER_SHARE
    if not answerable:
        present = {word for other in scenes for word in (other["noun"], other["place"])}
        noun = rng.choice([word for word in NOUNS[KIND_OF[noun]] if word not in present])
        place = rng.choice([word for word in DETAILS["place"] if word not in present])
    elif asks_place and rng.random() < 0.3:
        noun = KIND_OF[noun]
    question = f"where is the {noun}" if asks_place else f"what is in the {place}"
    sentence = describe(scene)
    answer = place if asks_place else sentence.partition(f" {scene['verb']}")[0]
    start = context.index(sentence) + sentence.index(answer) if answerable else 0
    answers = [{"text": answer, "answer_start": start}] if answerable else []
    return {"question": question, "answers": answers, "is_impossible": not answerable}
