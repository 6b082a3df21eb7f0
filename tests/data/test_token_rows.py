import datasets
import pytest

from bitkd.data import task_rows
from bitkd.data.tasks import FilesSpec, HubSpec, TaskSpec, WindowsSpec
from bitkd.data.token_rows import TokenRows
from bitkd.errors import InputError

TAGS = ["O", "B-PER", "I-PER"]
SENTENCES = [["a", "dog"], ["the", "big", "dog", "runs", "in", "the", "park", "."] * 2, ["a", "cat"]] * 10
LABELS = [[0, 1], [0, 1, 2, 0, 0, 0, 0, 0] * 2, [0, 0]] * 10


@pytest.fixture
def make(tiny_tokenizer, tmp_path):
    for name in ("train", "dev"):
        lines = ["\n".join(f"{word} {TAGS[tag]}" for word, tag in zip(*row)) + "\n" for row in zip(SENTENCES, LABELS)]
        (tmp_path / f"{name}.conll").write_text("\n".join(lines))
    (tmp_path / "test.conll").write_text("a\ndog\n\ncat\n")
    files = FilesSpec(train="train.conll", dev={"dev": "dev.conll"}, test={"test": "test.conll"})
    hub = HubSpec("owner/ner", label="ner_tags", dev={"dev": "validation"}, text=["tokens"])

    def build(local=True, **settings):
        task = TaskSpec(
            "ner",
            ["word"],
            TAGS,
            "entity_f1",
            ["entity_f1"],
            "token_classification",
            files,
            hub,
            windows=WindowsSpec(settings.pop("overlap", None)),
        )
        return TokenRows(task, tiny_tokenizer, tmp_path if local else None, **settings)

    return build


def test_long_sentences_become_windows_of_their_row(make):
    rows = make(max_length=12)
    assert rows.num_rows["train"] == len(rows.train) > 30
    assert max(rows.train["length"][:]) == 12
    assert rows.truncated == {"train": 0, "dev": 0}
    assert rows.train["index"][:] == list(range(len(rows.train)))
    found = [[None] * len(sentence) for sentence in LABELS]
    for row, words, labels in zip(*(rows.train[name][:] for name in ("row", "word", "label"))):
        for word, label in zip(words, labels):
            if word >= 0:
                assert found[row][word] is None
                found[row][word] = label
    assert found == LABELS


def test_overlap_is_part_of_the_fingerprint_and_of_the_kept_tokens(make, tmp_path):
    a, b = (make(max_length=12, overlap=overlap, cache_dir=tmp_path / "cache") for overlap in (2, 5))
    assert a.fingerprint() != b.fingerprint()
    assert len(a.train) < len(b.train)


def test_held_out_sentences_are_a_tenth_of_those_with_entities_and_of_those_without(make):
    rows = make(max_length=12, selection="holdout")
    held_out = sorted(set(rows.dev["holdout"]["row"][:]))
    assert [bool(sum(LABELS[row])) for row in held_out].count(True) == 2
    assert len(held_out) == 3
    assert not set(held_out) & set(rows.train["row"][:])
    metric = rows.metrics()["holdout"]
    metric._update_count = 1
    metric.compute()
    assert metric.row_scores()[1].sum() == sum(LABELS[row].count(1) for row in held_out)


def test_the_hubs_tags_are_matched_by_name(make, monkeypatch):
    names = ["B-PER", "O", "I-PER"]  # another order than the task's
    feature = datasets.Features(
        {"tokens": datasets.List(datasets.Value("string")), "ner_tags": datasets.List(datasets.ClassLabel(names=names))}
    )
    own = [[names.index(TAGS[tag]) for tag in tags] for tags in LABELS]
    split = datasets.Dataset.from_dict({"tokens": SENTENCES, "ner_tags": own}, features=feature)
    monkeypatch.setattr(task_rows, "load_hub_dataset", lambda *_: {"train": split, "validation": split})
    rows = make(local=False)
    assert rows.train_texts() == {"words": SENTENCES, "label": LABELS}
    wrong = split.remove_columns("ner_tags").add_column("ner_tags", [[0, 7], *own[1:]])
    monkeypatch.setattr(task_rows, "load_hub_dataset", lambda *_: {"train": wrong, "validation": split})
    with pytest.raises(InputError, match="owner/ner train, row 0, word 1: label 7 is outside the task's set"):
        rows.train_texts()


def test_a_test_sets_tags_are_written_in_lines(make):
    import torch

    rows = make()
    lengths = rows.test_rows("test")["length"][:]
    logits = torch.zeros(2, max(lengths), len(TAGS))
    logits[1, :, 1] = 1
    order = torch.tensor([1, 0])
    assert rows.submission("test", [(order, logits[order])]) == ("a\tO\ndog\tO\n\ncat\tB-PER\n\n", 2)
