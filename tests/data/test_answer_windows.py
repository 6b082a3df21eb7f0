import copy

import pytest

from bitkd.data.answer_windows import check_tokenizer, encode_windows, question_limit
from bitkd.errors import InputError

CONTEXT = "a dog runs . the cat sleeps . a bird sees the big red dog ."


@pytest.fixture
def encode(tiny_tokenizer):
    def encoded(*answers, question="the dog", context=CONTEXT, max_length=13, overlap=3):
        golds = [[{"start": context.index(text), "text": text} for text in answers]]
        return encode_windows(tiny_tokenizer, [question], [context], golds, max_length, overlap)

    return encoded


def test_windows_overlap_and_cover_the_context(encode, tiny_tokenizer):
    windows = encode("dog")
    # 8 tokens of the context each: 13 without 3 special ones and 2 of the question.
    assert [CONTEXT[spans[0] : spans[-1]] for spans in windows["offsets"]] == [
        "a dog runs . the cat sleeps .",
        "cat sleeps . a bird sees the big",
        "sees the big red dog .",
    ]
    assert windows["row"] == [0, 0, 0]
    assert windows["length"] == [13, 13, 11]
    for ids, start, end, spans in zip(*(windows[n] for n in ("input_ids", "context_from", "context_to", "offsets"))):
        words = [CONTEXT[a:b] for a, b in zip(spans[::2], spans[1::2])]
        assert tiny_tokenizer.convert_ids_to_tokens(ids)[start:end] == words


def test_an_answer_is_labelled_in_every_window_that_has_it_wholly(encode):
    assert encode("cat sleeps")["label"] == [[9, 10], [4, 5], [0, 0]]
    assert encode("the cat")["label"] == [[8, 9], [0, 0], [0, 0]]
    assert encode("red dog")["label"] == [[0, 0], [0, 0], [7, 8]]
    assert encode("big", "dog")["label"] == [[0, 0], [11, 11], [6, 6]]  # the first of several


def test_an_answer_that_no_window_has_wholly_is_counted(encode):
    windows = encode("dog runs . the cat sleeps . a bird")
    assert windows["label"] == [[0, 0]] * 3
    assert windows["truncated"] == [True, False, False]
    assert not any(encode("cat")["truncated"] + encode()["truncated"])


def test_a_part_of_a_word_is_labelled_by_the_tokens_that_have_it(encode):
    assert encode("ra", context="a zebra runs")["label"] == [[8, 9]]  # z ##e ##b ##r ##a
    assert encode(" dog ")["label"] == encode("dog")["label"]


def test_a_question_without_answers_has_the_first_token(encode):
    assert encode(context="a cat")["label"] == [[0, 0]]


def test_a_question_that_is_too_long_is_cut(encode, tiny_tokenizer):
    windows = encode("cat", question="the dog and the cat and the bird", max_length=16, overlap=5)
    assert question_limit(tiny_tokenizer, 16, 5) == 4
    assert windows["truncated"] == [True, *[False] * (len(windows["row"]) - 1)]  # each row counts once
    assert tiny_tokenizer.decode(windows["input_ids"][0]).startswith("[CLS] the dog and the [SEP]")
    assert not any(encode("cat")["truncated"])
    with pytest.raises(InputError, match=r"data.max_length=9 leaves no place .* 3 special tokens and .*overlap=5"):
        encode("cat", max_length=9, overlap=5)


def test_a_context_without_tokens_has_no_window(tiny_tokenizer):
    contexts = ["\x00\u200b", CONTEXT, "\u200b"]
    windows = encode_windows(tiny_tokenizer, ["the dog"] * 3, contexts, [[]] * 3, 13, 3)
    assert windows["row"] == [1, 1, 1]
    assert {len(column) for column in windows.values()} == {3}


def test_a_tokenizer_must_know_places_and_put_cls_first(tiny_tokenizer, monkeypatch):
    check_tokenizer(tiny_tokenizer)
    other = copy.deepcopy(tiny_tokenizer)
    other.padding_side = "left"
    with pytest.raises(InputError, match="pads on the left: set padding_side to right"):
        check_tokenizer(other)
    other.padding_side, other.truncation_side = "right", "left"
    with pytest.raises(InputError, match="truncates on the left: set truncation_side to right"):
        check_tokenizer(other)
    other.truncation_side, other.cls_token = "right", "[SEP]"
    with pytest.raises(InputError, match=r"puts \[CLS\] first, .* this one begins with \[CLS\]"):
        check_tokenizer(other)
    monkeypatch.setattr(type(other), "is_fast", False)
    with pytest.raises(InputError, match=r"needs a fast tokenizer, .* is none"):
        check_tokenizer(other)
