"""Sentences as lists of words; the interface of candidates; how a tokenizer divides words into pieces."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


class Candidates(Protocol):
    """Finds words that may replace the words of sentences."""

    def find(self, sentences: Sequence["Sentence"]) -> list[dict[int, list[str]]]:
        """For each sentence: position of a replaceable word -> its candidates, the best first."""


@dataclass(frozen=True)
class Sentence:
    """A sentence, divided into words."""

    words: list[str]
    replaceable: list[int]
    """Positions of the words that may be replaced."""


class Pieces:
    """How a tokenizer divides words into pieces."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        special = set(tokenizer.all_special_ids)
        marked = any(token.startswith("Ġ") for token, _ in vocabulary)
        self.whole_words = {
            i: token[1:] if marked else token
            for token, i in vocabulary
            if i not in special
            and (token.startswith("Ġ") if marked else not token.startswith(("##", "[unused")))
            and len(token) > marked
        }
        """Token -> word, for the tokens that are a word by themselves (WordPiece, or byte-level BPE)."""

    def of_words(self, sentences: list[list[str]]) -> tuple[list[list[int]], list[list[int]]]:
        """Tokens of each sentence without special ones, and for each token the number of its word."""
        encoded = self.tokenizer(sentences, is_split_into_words=True, add_special_tokens=False, verbose=False)
        return encoded["input_ids"], [encoded.word_ids(i) for i in range(len(sentences))]

    def mean_vector(self, word: str, matrix: Tensor) -> Tensor | None:
        """Mean of the vectors of a word's pieces, from an embedding matrix (tokens, dimensions); None if the tokenizer does
        not know a piece of it.
        """
        ids = self.of_words([[word]])[0][0]
        if not ids or self.tokenizer.unk_token_id in ids:
            return None
        return matrix[ids].mean(dim=0)
