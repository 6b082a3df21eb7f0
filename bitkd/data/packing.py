"""Documents packed into sequences of the model's length, for General KD (TinyBERT, arXiv:1909.10351)."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np

from bitkd.errors import InputError

SHORT_SHARE = 0.1
"""Share of sequences that are made shorter than the model's length, as BERT's pre-training does."""


class Packer:
    """Makes sequences [CLS] A [SEP] B [SEP] with token types, B from another document about half the time; or, with
    `segments=1`, [CLS] A [SEP].

    tokenizer: any of Hugging Face's.
    max_length: tokens of a sequence at most, special ones included.
    segments: 2 or 1.
    masking: share of tokens that are masked as in BERT's pre-training (of these 80 % become [MASK], 10 % another token,
        10 % stay): 0.15 in TinyBERT's first version, 0 in its second.

    Raises InputError if these do not fit together.
    """

    def __init__(self, tokenizer: Any, max_length: int, segments: int = 2, masking: float = 0.0) -> None:
        if segments not in (1, 2):
            raise InputError(f"data.segments={segments} is unsupported; use 2 (pairs of segments) or 1")
        if not 0 <= masking < 1:
            raise InputError(
                f"data.masking={masking} is outside 0 to 1; 0 masks nothing, TinyBERT's first version took 0.15"
            )
        if masking and tokenizer.mask_token_id is None:
            raise InputError(f"data.masking={masking}: the tokenizer has no mask token; use 0")
        self.tokenizer = tokenizer
        self.segments = segments
        self.masking = masking
        self.room = max_length - tokenizer.num_special_tokens_to_add(pair=segments == 2)
        if self.room < segments:
            raise InputError(f"data.max_length={max_length} leaves no room for text; use at least 8")

    def encode(self, documents: list[str]) -> list[list[int]]:
        """Tokens of each document, without special ones."""
        if not documents:
            return []
        options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
        return self.tokenizer(documents, **options)["input_ids"]

    def pack(self, documents: list[list[int]], random: np.random.Generator) -> Iterator[dict[str, Any]]:
        """Divide every document into segments; each token occurs once, in an A or in the B that continues an A.

        documents: tokens of each, as `encode` makes them.
        Yields rows of input_ids, attention_mask, token_type_ids (if the tokenizer makes them) and length.
        """
        for number, document in enumerate(documents):
            position = 0
            while position < len(document):
                room = self.room
                length = room if random.random() >= SHORT_SHARE else int(random.integers(self.segments, room + 1))
                first_length = length if self.segments == 1 else int(random.integers(1, length))
                first = document[position : position + first_length]
                position += len(first)
                second: list[int] | None = None
                if self.segments == 2:
                    second = document[position : position + length - len(first)]
                    if not second or (random.random() < 0.5 and len(documents) > 1):
                        # The continuation is left for the next sequence.
                        second = self._random_segment(documents, number, length - len(first), random)
                    else:
                        position += len(second)
                yield self._join(first, second, random)

    @staticmethod
    def _random_segment(documents: list[list[int]], number: int, length: int, random: np.random.Generator) -> list[int]:
        """A segment of a document other than `number`, if there is another."""
        if len(documents) == 1:
            return documents[0][:length]
        other = documents[(number + int(random.integers(1, len(documents)))) % len(documents)]
        start = int(random.integers(0, max(1, len(other) - length + 1)))
        return other[start : start + length]

    def _join(self, first: list[int], second: list[int] | None, random: np.random.Generator) -> dict[str, Any]:
        """The row of these segments, with the special tokens that the model's tokenizer puts around them."""
        ids: list[int] = []
        types: list[int] = []
        for segment, token, kind in self._template:
            piece = [token] if segment is None else self._masked((first, second or [])[segment], random)
            ids += piece
            types += [kind] * len(piece)
        row: dict[str, Any] = {"input_ids": ids, "attention_mask": [1] * len(ids), "length": len(ids)}
        return row | ({"token_type_ids": types} if "token_type_ids" in self.tokenizer.model_input_names else {})

    def _masked(self, ids: list[int], random: np.random.Generator) -> list[int]:
        if not self.masking:
            return ids
        chosen = random.random(len(ids)) < self.masking
        kinds, others = random.random(len(ids)), random.integers(0, len(self.tokenizer), len(ids))
        masked = np.where(kinds < 0.8, self.tokenizer.mask_token_id, np.where(kinds < 0.9, others, ids))
        return np.where(chosen, masked, ids).tolist()

    @cached_property
    def _template(self) -> list[tuple[int | None, int, int]]:
        """(segment, or None for a special token; token; token type) of each part of a sequence, read from an example:
        transformers 5 offers no call that adds special tokens to ids.
        """
        example = self.tokenizer(*["a"] * self.segments, return_token_type_ids=True)
        parts = zip(example.sequence_ids(0), example["input_ids"], example["token_type_ids"])
        template: list[tuple[int | None, int, int]] = []
        for part in parts:
            if part[0] is None or not template or template[-1][0] != part[0]:
                template.append(part)
        return template
