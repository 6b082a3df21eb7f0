import random
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from bitkd.data.word_windows import check_words_tokenizer, encode_words, split_words
from bitkd.errors import InputError

PIECES = ["[PAD]", "[CLS]", "[SEP]", "a", "##b", "##c"]


@pytest.fixture(scope="module")
def tokenizer():
    """Makes a piece of each letter of a word of a, b and c."""
    backend = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(PIECES)}, unk_token="[PAD]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", model_max_length=8
    )


def test_the_first_piece_of_a_word_has_its_label(tokenizer):
    assert encode_words(tokenizer, [["ab", "a"], []], [[3, 0], []], max_length=8, overlap=2) == {
        "input_ids": [[1, 3, 4, 3, 2], [1, 2]],
        "attention_mask": [[1] * 5, [1] * 2],
        "row": [0, 1],
        "word": [[-1, 0, -1, 1, -1], [-1, -1]],
        "length": [5, 2],
        "label": [[-100, 3, -100, 0, -100], [-100, -100]],
    }


def test_a_word_belongs_to_the_window_where_its_smaller_side_is_larger(tokenizer):
    windows = encode_words(tokenizer, [["a"] * 9], None, max_length=8, overlap=3)
    assert windows["word"] == [[-1, 0, 1, 2, 3, 4, -1, -1], [-1, -1, -1, 5, 6, 7, 8, -1]]


def test_windows_are_those_of_the_tokenizer_and_each_word_is_marked_once(tokenizer):
    chooser = random.Random(0)
    for _ in range(40):
        words = [["a" + "bc"[i % 2] * chooser.randrange(5) for i in range(chooser.randrange(30))] for _ in range(3)]
        labels = [[chooser.randrange(4) for _ in row] for row in words]
        length, overlap = chooser.randrange(7, 12), chooser.randrange(4)
        windows = encode_words(tokenizer, words, labels, length, overlap)
        expected = tokenizer(
            words,
            is_split_into_words=True,
            truncation=True,
            max_length=length,
            stride=overlap,
            return_overflowing_tokens=True,
        )
        assert windows["input_ids"] == expected["input_ids"]
        assert windows["row"] == expected["overflow_to_sample_mapping"]
        marks = [
            (row, word, token, label)
            for row, *columns in zip(windows["row"], windows["word"], windows["input_ids"], windows["label"])
            for word, token, label in zip(*columns)
            if word >= 0 or label >= 0
        ]
        first_piece = PIECES.index("a")
        assert sorted(marks) == [
            (row, word, first_piece, label)
            for row, sentence in enumerate(labels)
            for word, label in enumerate(sentence)
        ]


def test_a_word_without_a_piece_is_marked_nowhere(tokenizer):
    assert encode_words(tokenizer, [["a", "\x85", "a"]], None, 8, 2)["word"] == [[-1, 0, 2, -1]]


def test_byte_level_words_begin_with_a_space():
    letters = {letter: i for i, letter in enumerate("Ġab")}
    backend = Tokenizer(models.BPE(letters | {"Ġa": 3}, [("Ġ", "a")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    windows = encode_words(PreTrainedTokenizerFast(tokenizer_object=backend), [["a", "ab"]], None, 8, 2)
    assert windows["input_ids"] == [[3, 3, 2]]
    assert windows["word"] == [[0, 1, -1]]


def test_windows_must_move_on_and_know_their_words(tokenizer):
    assert check_words_tokenizer(tokenizer, 128, None) == 42
    assert check_words_tokenizer(tokenizer, 8, 5) == 5
    with pytest.raises(InputError, match="has 6 for words, so windows that share 6 do not move on; use 0 to 5"):
        check_words_tokenizer(tokenizer, 8, 6)
    with pytest.raises(InputError, match="needs a fast tokenizer"):
        check_words_tokenizer(SimpleNamespace(is_fast=False), 8, 2)


def test_words_of_a_text_know_their_characters():
    assert split_words(" a cat, a\n") == (["a", "cat,", "a"], [(1, 2), (3, 7), (8, 9)])
