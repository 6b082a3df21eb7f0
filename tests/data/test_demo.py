import collections
import math
import socket

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from bitkd.data.answer_files import read_answers
from bitkd.data.demo import files as demo
from bitkd.data.demo import model as demo_model
from bitkd.data.demo.entities import SETS, tagged_rows
from bitkd.data.demo.files import ensure_demo
from bitkd.data.demo.questions import CONTEXTS, write_questions
from bitkd.data.demo.similarities import score, scored_pairs
from bitkd.data.demo.text import KIND_OF, LABELS, NOUNS, VERBS, documents, pairs, rivals
from bitkd.data.tasks import AnswersSpec, TaskSpec


@pytest.fixture(scope="module")
def rows():
    return pairs(demo.TRAIN_ROWS + demo.DEV_ROWS, seed=1)


@pytest.fixture
def quick(monkeypatch):
    """A demo that is built in a second: a smaller corpus, hardly any pre-training."""
    monkeypatch.setattr(demo, "DOCUMENTS", 60)
    monkeypatch.setattr(demo_model, "PRETRAINING_STEPS", 5)


@pytest.fixture
def no_model(monkeypatch):
    monkeypatch.setattr(demo_model, "write_model", lambda folder, corpus, texts: folder.mkdir())


def files(source):
    folder = source.corpus.parent
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_no_pair_comes_twice_and_labels_are_balanced(rows):
    assert len({row[:2] for row in rows}) == len(rows)
    counts = collections.Counter(label for *_, label in rows)
    assert set(counts) == set(LABELS)
    assert max(counts.values()) - min(counts.values()) <= 1


def accuracy_of_counting(rows, words):
    """A naive Bayes classifier over `words(row)`."""
    split = len(rows) * 4 // 5
    counts = {label: collections.Counter() for label in LABELS}
    for row in rows[:split]:
        counts[row[2]].update(words(row))
    totals = {label: sum(counter.values()) for label, counter in counts.items()}

    def guess(row):
        return max(
            LABELS, key=lambda label: sum(math.log((counts[label][w] + 1) / (totals[label] + 99)) for w in words(row))
        )

    return sum(guess(row) == row[2] for row in rows[split:]) / (len(rows) - split)


def test_one_sentence_alone_decides_little(rows):
    assert accuracy_of_counting(rows, lambda row: row[1].split()) < 0.36
    assert accuracy_of_counting(rows, lambda row: row[0].split()) < 0.6


def test_splits_share_no_hypothesis(rows):
    train, dev = rows[: demo.TRAIN_ROWS], rows[demo.TRAIN_ROWS :]
    assert not {row[1] for row in train} & {row[1] for row in dev}
    for part in train, dev:
        assert set(collections.Counter(row[1] for row in part).values()) == {len(LABELS)}


def test_rivals_exclude_a_word_but_not_what_it_is_a_kind_of():
    assert set(rivals("dog")) == {*KIND_OF, *NOUNS} - {"dog", "animal", *VERBS, *(w for v in VERBS.values() for w in v)}
    assert set(rivals("moves")) == {"rests", *VERBS["rests"]}
    assert rivals("big") == ["small"]
    assert rivals("in") == []


def test_similar_scenes_have_a_high_score():
    scene = {"noun": "dog", "verb": "runs", "size": None, "color": "red", "place": "park"}
    assert score(scene, scene) == 5
    # Another animal, and a thing at rest; a size that only one has, another color, the same place.
    other = {"noun": "animal", "verb": "rests", "size": "big", "color": "blue", "place": "park"}
    assert score(scene, other) == score(other, scene) == 2 / 2 + 0 + (1 / 2 + 0 + 1) / 2
    rows = scored_pairs(400, seed=4)
    assert len({row[:2] for row in rows}) == 400
    assert {0.5, 5.0} <= {row[2] for row in rows}


def test_documents_describe_one_scene_each():
    text = list(documents(3, 4, seed=0))
    assert [len(sentences) for sentences in text] == [4, 4, 4]
    assert text == list(documents(3, 4, seed=0)) != list(documents(3, 4, seed=1))


def test_the_tag_of_an_adjective_depends_on_its_noun(tmp_path, no_model):
    rows = tagged_rows(sum(SETS.values()), seed=4)
    tags = collections.defaultdict(set)
    for word, tag in (word for row in rows for word in row):
        tags[word].add(tag)
    assert tags["small"] == {"B-ANIMAL", "B-PERSON", "B-VEHICLE"}
    assert tags["red"] == {f"{prefix}-{kind}" for prefix in "BI" for kind in ("ANIMAL", "PERSON", "VEHICLE")} | {
        "B-PLACE"
    }
    folder = ensure_demo(tmp_path).data / "entities"
    for name, count in SETS.items():
        assert (folder / f"{name}.conll").read_text().count("\n\n") + 1 == count


def test_questions_are_answered_by_a_part_of_one_scene_or_by_nothing(tmp_path):
    write_questions(tmp_path)
    task = TaskSpec(text=["question", "context"], answers=AnswersSpec(unanswerable=True))
    rows = {name: read_answers(task, tmp_path / f"{name}.json", labelled=name != "test") for name in CONTEXTS}
    assert {name: len(found["id"]) for name, found in rows.items()} == {"train": 3000, "dev": 750, "test": 60}
    unanswerable = [not golds for golds in rows["dev"]["label"]]
    assert 0.2 < sum(unanswerable) / len(unanswerable) < 0.3
    for question, context, golds in zip(*(rows["dev"][name] for name in ("text_a", "text_b", "label"))):
        word = question.split()[-1]
        sentences = [part for part in context.split(" .") if {word, *NOUNS.get(word, ())} & set(part.split())]
        assert len(sentences) == len(golds)
        assert all(gold["text"] in sentences[0] for gold in golds)


def test_two_builds_have_the_same_bytes_and_load(tmp_path, quick):
    torch.manual_seed(9)
    before = torch.get_rng_state()
    first = ensure_demo(tmp_path / "one")
    assert torch.equal(torch.get_rng_state(), before)
    assert files(first) == files(ensure_demo(tmp_path / "two"))
    tokenizer, model = AutoTokenizer.from_pretrained(first.model), AutoModel.from_pretrained(first.model)
    row = pairs(3, seed=5)[0]
    inputs = tokenizer(row[0], row[1], return_tensors="pt")
    assert tokenizer.unk_token_id not in inputs["input_ids"]
    again = AutoModel.from_pretrained(first.model)  # the pooler too comes from the file
    assert torch.equal(model.eval()(**inputs).pooler_output, again.eval()(**inputs).pooler_output)
    assert len((first.data / "train.tsv").read_text().splitlines()) == demo.TRAIN_ROWS + 1


def test_a_finished_demo_is_not_made_again(tmp_path, no_model, monkeypatch):
    first = ensure_demo(tmp_path)
    monkeypatch.setattr(demo_model, "write_model", None)
    assert ensure_demo(tmp_path) == first


def test_a_killed_build_leaves_nothing_visible_and_is_deleted(tmp_path, no_model, monkeypatch):
    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(demo_model, "write_model", killed)
        with pytest.raises(KeyboardInterrupt):
            ensure_demo(tmp_path)
    assert not list(tmp_path.glob("demo-*"))
    [leftover] = tmp_path.glob(".building.*")
    dead = leftover.rename(tmp_path / f".building.{socket.gethostname()}.{2**22 + 1}")
    ensure_demo(tmp_path)
    assert not dead.exists()
