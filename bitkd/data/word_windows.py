"""Sentences of words as tokens, in windows that overlap where a sentence is longer than a model reads."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bitkd.data.tokenized import UNLABELLED
from bitkd.errors import InputError

NO_WORD = -1
"""Number of the word at such a token."""


def check_words_tokenizer(tokenizer: Any, max_length: int, overlap: int | None) -> int:
    """Tokens that two neighbouring windows share.

    overlap: what the task says; None is a third of max_length.

    Raises InputError if the tokenizer cannot tell which word a token belongs to, or if windows would not move on.
    """
    if not tokenizer.is_fast:
        raise InputError(
            f"{type(tokenizer).__name__} cannot tell which word a token belongs to; task.kind=token_classification needs a "
            "fast tokenizer (of the tokenizers library): take a model whose folder has a tokenizer.json"
        )
    free = max_length - tokenizer.num_special_tokens_to_add()
    shared = min(max_length // 3, max(free - 1, 0)) if overlap is None else overlap
    if not 0 <= shared < free:
        raise InputError(
            f"task.windows.overlap={overlap}: a window of data.max_length={max_length} tokens has {free} for words, so "
            f"windows that share {shared} do not move on; use 0 to {free - 1}"
        )
    return shared


def encode_words(
    tokenizer: Any,
    words: Sequence[Sequence[str]],
    labels: Sequence[Sequence[int]] | None,
    max_length: int,
    overlap: int,
) -> dict[str, list[Any]]:
    """Windows of sentences, at most `max_length` tokens each, of which neighbours share `overlap`.

    labels: position of each word's tag; None gives no column of labels.

    Besides the tokenizer's own columns, for each window: `row`, the number of its sentence among `words`; `word`, for each
    token the number of the word that it is the first piece of, else -1; `label`, that word's label, else -100; and
    `length`, its tokens. A word that stands in several windows is marked in the one that has the most tokens beside it on
    the side where it has fewer. So each word is marked once, except one of which the tokenizer makes nothing (such as a
    control character), which is marked nowhere.
    """
    # Byte-level BPE takes a word without a space before it for the rest of another word.
    space = " " if tokenizer("a", verbose=False)["input_ids"] != tokenizer(" a", verbose=False)["input_ids"] else ""
    texts = [[space + word for word in sentence] for sentence in words]
    encoded = tokenizer(texts, is_split_into_words=True, truncation=False, padding=False, verbose=False)
    windows: dict[str, list[Any]] = {name: [] for name in (*encoded, "row", "word", "length")}
    if labels is not None:
        windows["label"] = []
    for row in range(len(texts)):
        numbers = np.array([NO_WORD if word is None else word for word in encoded.word_ids(row)], dtype=np.int64)
        before, after = _special_ends(encoded.encodings[row].special_tokens_mask)
        end = len(numbers) - after
        numbers[1:][numbers[1:] == numbers[:-1]] = NO_WORD  # but the first piece of each word
        numbers = numbers[before:end]
        spans = list(_spans(len(numbers), max_length - before - after, overlap))
        owners = _owners(len(numbers), spans)
        for window, (first, last) in enumerate(spans):
            owned = np.where(owners[first:last] == window, numbers[first:last], NO_WORD)
            marked = [*[NO_WORD] * before, *owned.tolist(), *[NO_WORD] * after]
            for name in encoded:
                column = encoded[name][row]
                windows[name].append([*column[:before], *column[before + first : before + last], *column[end:]])
            windows["row"].append(row)
            windows["word"].append(marked)
            windows["length"].append(len(marked))
            if labels is not None:
                windows["label"].append([UNLABELLED if word == NO_WORD else labels[row][word] for word in marked])
    return windows


def _special_ends(special: list[int]) -> tuple[int, int]:
    """Special tokens before the first token of a word, and after the last one."""
    real = np.flatnonzero(np.asarray(special) == 0)
    if not len(real):
        return len(special), 0
    return int(real[0]), len(special) - 1 - int(real[-1])


def _spans(tokens: int, room: int, overlap: int) -> Iterator[tuple[int, int]]:
    """First token of each window and the one after its last, of a sentence of `tokens` tokens."""
    start = 0
    while start + room < tokens:
        yield start, start + room
        start += room - overlap
    yield start, tokens


def _owners(tokens: int, spans: list[tuple[int, int]]) -> np.ndarray:
    """For each token, the number of the window in which its smaller side is the largest; the first one of several."""
    owners, largest = np.zeros(tokens, dtype=np.int64), np.full(tokens, -1)
    for window, (first, last) in enumerate(spans):
        places = np.arange(last - first)
        side = np.minimum(places, places[::-1])
        better = side > largest[first:last]
        owners[first:last][better] = window
        largest[first:last][better] = side[better]
    return owners


def split_words(text: str) -> tuple[list[str], list[tuple[int, int]]]:
    """The words of a text, separated by spaces, and the characters of each, [from, to)."""
    words, spans, place = text.split(), [], 0
    for word in words:
        place = text.index(word, place)
        spans.append((place, place + len(word)))
        place += len(word)
    return words, spans
