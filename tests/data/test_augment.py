import inspect
import logging
import resource

import pytest
import torch
import transformers
from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM

from bitkd.data.augment.augmenter import SHARD_ROWS, Augmenter, load_shards, shard_file, write_shard
from bitkd.data.augment.candidates import MaskedLMCandidates, VectorCandidates, load_masked_lm, make_candidates
from bitkd.data.augment.checks import check_augmentation, check_augmented
from bitkd.data.augment.words import Sentence
from bitkd.data.tasks import AugmentSpec
from bitkd.errors import InputError
from bitkd.store.records import AugmentedRecord

WORDS = ["dog", "cat", "bird", "sees", "likes", "runs", "sleeps", "big", "small", "red", "blue", "fast", "old", "new"]


class Fixed:
    """Candidates without a model: the same three for every word."""

    def find(self, sentences):
        return [{i: ["red", "blue", "old"] for i in sentence.replaceable} for sentence in sentences]


@pytest.fixture(scope="module")
def masked_lm(tmp_path_factory, tiny_tokenizer):
    """The folder of a random BERT with a masked-LM head, its logits far enough apart to have one order."""
    folder = tmp_path_factory.mktemp("masked_lm")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(tiny_tokenizer), max_position_embeddings=64, initializer_range=0.3, **shape)
    BertForMaskedLM(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def rows_of(count, pairs=True):
    a = [f"the {WORDS[i % 14]} {WORDS[(i // 14) % 14]} not the {WORDS[(i * 3) % 14]}" for i in range(count)]
    rows = {"text_a": a, "label": [i % 2 for i in range(count)]}
    return rows | ({"text_b": [f"a {WORDS[(i * 5) % 14]} runs ." for i in range(count)]} if pairs else {})


def augmenter(tokenizer, rows, candidates=None, apart=False, **spec):
    return Augmenter(rows, tokenizer, candidates or Fixed(), AugmentSpec(**spec), max_length=32, apart=apart)


def test_originals_stay_and_one_sentence_at_a_time_varies(tiny_tokenizer):
    rows = rows_of(64)
    made = augmenter(tiny_tokenizer, rows, variants=5, probability=0.5).block(range(64))
    for i in range(64):
        versions = [(a, b) for a, b, source in zip(made["text_a"], made["text_b"], made["index"]) if source == i]
        a, b = rows["text_a"][i], rows["text_b"][i]
        assert versions[0] == (a, b)
        assert len(set(versions)) == len(versions) <= 1 + 2 * 5
        assert all((x == a) != (y == b) for x, y in versions[1:])
        assert all(x.split()[0] == "the" and x.split()[3:5] == ["not", "the"] for x, _ in versions)
    assert [made["label"][k] for k in range(len(made["index"]))] == [i % 2 for i in made["index"]]


def test_with_certainty_every_word_that_may_be_replaced_is(tiny_tokenizer):
    made = augmenter(tiny_tokenizer, rows_of(8, pairs=False), variants=3, probability=1.0).block(range(8))
    texts = [text.split() for text, i, j in zip(made["text_a"], made["index"], [None, *made["index"]]) if i == j]
    assert texts
    assert all(words[1] in ("red", "blue", "old") and words[0] == "the" for words in texts)


def test_stop_words_are_a_setting(tiny_tokenizer):
    made = augmenter(tiny_tokenizer, rows_of(8), probability=1.0, stop_words=["the", "a", "not", *WORDS]).block(
        range(8)
    )
    assert made["index"] == list(range(8))


def test_the_batched_predictions_are_those_of_one_forward_per_word(masked_lm, tiny_tokenizer):
    finder = MaskedLMCandidates(load_masked_lm(masked_lm), tiny_tokenizer, 5, Fixed())
    words = [["the", "dog", "runs", "fast"], ["a", "small", "red", "bird", "sees", "the", "old", "cat", "."]]
    sentences = [Sentence(w, [i for i, word in enumerate(w) if word.isalpha()]) for w in words]
    together = finder.find(sentences)
    assert together == [finder.find([sentence])[0] for sentence in sentences]
    model = BertForMaskedLM.from_pretrained(masked_lm).eval()
    for sentence, found in zip(sentences, together):
        for i in sentence.replaceable:
            masked = [*sentence.words[:i], "[MASK]", *sentence.words[i + 1 :]]
            inputs = tiny_tokenizer(" ".join(masked), " ".join(sentence.words), return_tensors="pt")
            with torch.no_grad():
                order = model(**inputs).logits[0, i + 1].argsort(descending=True)
            pieces = tiny_tokenizer.convert_ids_to_tokens(order.tolist())
            assert found[i] == [piece for piece in pieces if not piece.startswith(("##", "["))][:5]


@pytest.mark.parametrize("name", ["Roberta", "Electra", "DebertaV2", "MPNet", "DistilBert", "ModernBert", "Albert"])
def test_predictions_of_every_family_are_those_of_its_whole_model(name, tiny_tokenizer):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    own = {
        "DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
        "Albert": sizes | {"embedding_size": 32},
    }
    shared = {
        "vocab_size": len(tiny_tokenizer),
        "max_position_embeddings": 70,
        "pad_token_id": 0,
        "initializer_range": 0.3,
    }
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**shared | own.get(name, sizes))
    model = AutoModelForMaskedLM.from_config(config).eval()
    words = ["a", "small", "red", "bird", "sees", "the", "old", "cat"]
    masked = " ".join([*words[:2], "[MASK]", *words[3:]])
    inputs = tiny_tokenizer(masked, " ".join(words), return_tensors="pt")
    accepted = inspect.signature(model.forward).parameters
    with torch.no_grad():
        logits = model(**{name: column for name, column in inputs.items() if name in accepted}).logits[0, 3]
    pieces = tiny_tokenizer.convert_ids_to_tokens(logits.argsort(descending=True).tolist())
    (found,) = MaskedLMCandidates(model, tiny_tokenizer, 5, Fixed()).find([Sentence(words, [2])])
    assert found[2] == [piece for piece in pieces if not piece.startswith(("##", "["))][:5]


def test_words_in_pieces_take_word_vectors(masked_lm, tiny_tokenizer):
    found = MaskedLMCandidates(load_masked_lm(masked_lm), tiny_tokenizer, 3, Fixed()).find(
        [Sentence(["dog", "dogcat"], [0, 1])]
    )[0]
    assert len(found[0]) == 3
    assert found[1] == ["red", "blue", "old"]


def test_a_sentence_longer_than_the_model_reads_keeps_its_end(masked_lm, tiny_tokenizer):
    words = ["dog"] * 80
    found = MaskedLMCandidates(load_masked_lm(masked_lm), tiny_tokenizer, 3, Fixed()).find(
        [Sentence(words, [0, 61, 62, 79])]
    )[0]
    assert sorted(found) == [0, 61]


def test_near_words_are_near_by_cosine():
    words = ["north", "northish", "east", "south"]
    vectors = torch.tensor([[0.0, 2.0], [0.1, 1.0], [1.0, 0.0], [0.0, -1.0]])
    found = VectorCandidates(words, vectors, 2).find([Sentence(["north", "unheard"], [0, 1])])[0]
    assert found == {0: ["northish", "east"], 1: []}


def test_word_vectors_from_a_file(tmp_path):
    file = tmp_path / "glove.txt"
    file.write_text("dog 1 0\ncat 0.9 0.1\n, 5 5\nbird 0 1\n")
    found = VectorCandidates.of_file(file, 1).find([Sentence(["dog"], [0])])[0]
    assert found == {0: ["cat"]}
    file.write_text("dog 1 0\ncat 0.9\n")
    with pytest.raises(InputError, match=r"glove\.txt:2 is no word and its numbers"):
        VectorCandidates.of_file(file, 1)
    with pytest.raises(InputError, match="there is no such file"):
        VectorCandidates.of_file(tmp_path / "none", 1)


def test_a_model_without_a_masked_lm_head_predicts_nothing(tiny_bert, tiny_tokenizer, caplog):
    with pytest.raises(InputError, match=r"no trained masked-LM head \(cls\.predictions.* is missing\)"):
        make_candidates(tiny_bert, tiny_tokenizer, "masked_lm", 3, None, "32-true")
    with caplog.at_level(logging.WARNING):
        found = make_candidates(tiny_bert, tiny_tokenizer, "auto", 3, None, "32-true")
    assert isinstance(found, VectorCandidates)
    assert "all candidates come from word vectors" in caplog.text


def test_the_rows_do_not_depend_on_who_writes_the_shards(masked_lm, tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("bitkd.data.augment.augmenter.SHARD_ROWS", 128)
    rows = rows_of(200)
    finder = make_candidates(masked_lm, tiny_tokenizer, "auto", 3, None, "32-true")
    one, other = (augmenter(tiny_tokenizer, rows, finder, variants=2) for _ in range(2))
    for number in range(one.shards):
        write_shard(one, number, tmp_path / "one")
    for number in reversed(range(other.shards)):
        write_shard(other, number, tmp_path / "two")
    assert one.shards == 2
    for number in range(2):
        assert shard_file(tmp_path / "one", number).read_bytes() == shard_file(tmp_path / "two", number).read_bytes()
    loaded = load_shards(tmp_path / "one")
    assert sorted(set(loaded["index"][:])) == list(range(200))
    assert loaded.cache_files
    expected = tiny_tokenizer(loaded[7]["text_a"], loaded[7]["text_b"])["input_ids"]
    assert loaded[7]["input_ids"] == expected
    assert loaded[7]["length"] == len(expected)


def test_texts_that_are_read_alone_are_tokenized_alone(tiny_tokenizer, tmp_path):
    write_shard(augmenter(tiny_tokenizer, rows_of(8), apart=True), 0, tmp_path)
    row = load_shards(tmp_path)[7]
    for name, end in (("text_a", ""), ("text_b", "_b")):
        assert row[f"input_ids{end}"] == tiny_tokenizer(row[name])["input_ids"]
        assert row[f"token_type_ids{end}"] == [0] * len(row[f"input_ids{end}"])


def test_a_finished_shard_is_not_made_again(tiny_tokenizer, tmp_path):
    first = write_shard(augmenter(tiny_tokenizer, rows_of(8)), 0, tmp_path)
    assert write_shard(augmenter(tiny_tokenizer, rows_of(8), candidates=object()), 0, tmp_path) == first


def test_a_full_disk_leaves_no_part_of_a_shard(tiny_tokenizer, tmp_path):
    maker = augmenter(tiny_tokenizer, rows_of(SHARD_ROWS), variants=4)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_shard(maker, 0, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
    assert write_shard(maker, 0, tmp_path).rows > SHARD_ROWS


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"source": "lm"}, r"augmentation\.source=lm is unknown; use one of auto, masked_lm, vectors"),
        ({"precision": "bf16"}, r"augmentation\.precision=bf16 is unknown; did you mean bf16-mixed"),
        ({"probability": 0.0}, r"outside \(0, 1\]"),
        ({"variants": 0}, "variants=0 is too small"),
        ({"vectors": "/nowhere"}, "there is no such file"),
        ({"path": "/nowhere"}, "there is no such folder"),
        ({"seed": -1}, "is negative"),
    ],
)
def test_settings_that_do_not_fit_are_refused(spec, message):
    with pytest.raises(InputError, match=message):
        check_augmentation(AugmentSpec(**spec))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "rte"}, "was made for task rte, this is mrpc"),
        ({"max_length": 64}, r"data\.max_length=64"),
        ({"source": "y"}, "other training rows"),
        ({"tokenizer": "b"}, "another tokenizer"),
    ],
)
def test_rows_made_for_another_run_are_refused(tmp_path, change, message):
    facts = {
        "task": "mrpc",
        "source": "x",
        "sources": 1,
        "rows": 1,
        "truncated": 0,
        "max_length": 128,
        "tokenizer": "a",
    }
    with pytest.raises(InputError, match=message):
        check_augmented(tmp_path, AugmentedRecord(**(facts | change)), "mrpc", "x", 128, "a")


def test_a_shard_whose_record_was_lost_is_made_again(tiny_tokenizer, tmp_path):
    maker = augmenter(tiny_tokenizer, rows_of(8))
    first = write_shard(maker, 0, tmp_path)
    content = shard_file(tmp_path, 0).read_bytes()
    shard_file(tmp_path, 0).with_suffix(".json").write_text("")
    assert write_shard(maker, 0, tmp_path).rows == first.rows
    assert shard_file(tmp_path, 0).read_bytes() == content
