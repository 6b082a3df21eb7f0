"""Words that may replace a word: predicted by a masked language model, or its nearest word vectors."""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForMaskedLM

from bitkd.data.augment.words import Candidates, Pieces, Sentence
from bitkd.data.tasks import CandidatePrecision, CandidateSource
from bitkd.errors import InputError
from bitkd.pretrained.load import load_pretrained
from bitkd.quant.layout import find_layers, input_limits

FORWARD_TOKENS = {"cpu": 1024, "cuda": 4096}
"""Device -> padded tokens of one forward pass: on a CPU few, so that hidden states stay in its caches. They are constants,
because rounding depends on the shape of a batch: with another size, two nearly equal candidates could change places."""

VECTOR_CHUNK = 256
"""Words whose nearest vectors are found in one matrix product."""

CACHED_WORDS = 100_000
"""Largest number of words whose candidates are cached."""

log = logging.getLogger(__name__)


class VectorCandidates:
    """Nearest words by cosine of word vectors: of the model's own embedding matrix, or of a file in GloVe's format.

    A word that the vocabulary has only in pieces takes the mean of their vectors. A word that is not in the file has no
    candidates.

    words: the candidates.  vectors: their vectors, (words, dimensions).  count: number of candidates of a word.
    mean_vector: gives the vector of a word that is not among `words`, or None.
    """

    def __init__(
        self,
        words: list[str],
        vectors: Tensor,
        count: int,
        mean_vector: Callable[[str], Tensor | None] = lambda word: None,
    ) -> None:
        self.words = words
        self.count = count
        self._mean_vector = mean_vector
        self._raw = vectors
        self._unit = torch.nn.functional.normalize(vectors.float(), dim=1)
        self._row = {word: row for row, word in enumerate(words)}
        self._cache: dict[str, list[str]] = {}

    @classmethod
    def of_model(cls, matrix: Tensor, tokenizer: Any, count: int) -> "VectorCandidates":
        """Vectors from a model's word embeddings, (tokens, dimensions)."""
        pieces = Pieces(tokenizer)
        ids = [i for i, word in pieces.whole_words.items() if re.fullmatch("[A-Za-z]{2,}", word)]
        return cls([pieces.whole_words[i] for i in ids], matrix[ids], count, partial(pieces.mean_vector, matrix=matrix))

    @classmethod
    def of_file(cls, file: Path, count: int) -> "VectorCandidates":
        """Vectors from a text file with a line "word number number …" for each word. Raises InputError if it has
        another form, or too few words.
        """
        if not file.is_file():
            raise InputError(f"task.augmentation.vectors={file}: there is no such file; name a file in GloVe's format")
        words: list[str] = []
        rows: list[np.ndarray] = []
        with open(file, encoding="utf-8", errors="replace") as stream:
            for number, line in enumerate(stream, start=1):
                word, _, numbers = line.rstrip().partition(" ")
                try:
                    row = np.array(numbers.split(" "), dtype=np.float32)
                except ValueError:
                    row = np.empty(0, np.float32)
                if not len(row) or (rows and len(row) != len(rows[0])) or not np.isfinite(row).all():
                    raise InputError(
                        f"{file}:{number} is no word and its numbers; task.augmentation.vectors= reads GloVe's format"
                    )
                if re.fullmatch("[A-Za-z]{2,}", word):
                    words.append(word)
                    rows.append(row)
        if len(words) <= count:
            raise InputError(f"{file} has vectors of {len(words)} words; {count} candidates need more")
        return cls(words, torch.from_numpy(np.stack(rows)), count)

    def find(self, sentences: Sequence[Sentence]) -> list[dict[int, list[str]]]:
        self._look_up({sentence.words[i] for sentence in sentences for i in sentence.replaceable})
        found = [{i: self._cache.get(sentence.words[i], []) for i in sentence.replaceable} for sentence in sentences]
        if len(self._cache) > CACHED_WORDS:
            self._cache.clear()
        return found

    @torch.inference_mode()
    def _look_up(self, words: set[str]) -> None:
        new = sorted(words - self._cache.keys())
        vectors = {word: vector for word in new if (vector := self._vector(word)) is not None}
        names = list(vectors)
        for start in range(0, len(names), VECTOR_CHUNK):
            chunk = names[start : start + VECTOR_CHUNK]
            # Pad to a fixed number of rows: rounding depends on the shape of the product, and which words are cached
            # already depends on the order of calls.
            queries = torch.zeros(VECTOR_CHUNK, self._unit.shape[1])
            queries[: len(chunk)] = torch.nn.functional.normalize(
                torch.stack([vectors[word] for word in chunk]).float(), dim=1
            )
            near = (queries @ self._unit.T).topk(min(self.count + 1, len(self.words)), dim=1).indices.tolist()
            for word, places in zip(chunk, near):
                others = [self.words[place] for place in places if self.words[place] != word]
                self._cache[word] = others[: self.count]

    def _vector(self, word: str) -> Tensor | None:
        if word in self._row:
            return self._raw[self._row[word]]
        return self._mean_vector(word)


class MaskedLMCandidates:
    """Candidates that a masked language model predicts for words of a single piece. Its input is [CLS] masked sentence
    [SEP] original sentence [SEP], as published. Words of several pieces take their candidates from `others`.

    All queries of a call are run together, sorted by length; the head, and in encoders built like BERT the last layer behind
    its attention, are computed only at the masked position.

    model: a masked language model with a trained head.  count: candidates of a word.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        count: int,
        others: Candidates,
        precision: CandidatePrecision = "32-true",
        device: str = "cpu",
    ) -> None:
        self.model = model.to(device)
        self.count = count
        self.others = others
        self.device = torch.device(device)
        self.bf16 = precision == "bf16-mixed"
        self._tokenizer = tokenizer
        self._pieces = Pieces(tokenizer)
        allowed = torch.full((self.model.config.vocab_size,), -torch.inf)
        allowed[list(self._pieces.whole_words)] = 0
        self._allowed = allowed.to(device)
        self._longest = min(input_limits(self.model).positions, tokenizer.model_max_length)
        self._masked: Tensor | None = None
        layers = find_layers(self.model)
        attention = getattr(layers.modules[-1], "attention", None) if layers else None
        if (behind := getattr(attention, "output", None)) is not None:
            behind.register_forward_pre_hook(self._keep_masked)
        self.model.base_model.register_forward_hook(self._keep_masked_of_last)

    def _keep_masked(self, module: Any, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Hook behind the last layer's attention: nothing reads what that layer's other products give elsewhere than at the
        masked position.  states: each (batch, length, hidden); returns (batch, 1, hidden).
        """
        rows = torch.arange(len(self._masked), device=self.device)  # type: ignore[arg-type]
        return tuple(each[rows, self._masked].unsqueeze(1) for each in states)

    def _keep_masked_of_last(self, module: Any, inputs: Any, output: Any) -> Any:
        """Hook between encoder and head, for encoders without the other one: a head over the vocabulary costs as much as the
        encoder.
        """
        if output.last_hidden_state.shape[1] > 1:
            (output.last_hidden_state,) = self._keep_masked(module, (output.last_hidden_state,))
        return output

    def find(self, sentences: Sequence[Sentence]) -> list[dict[int, list[str]]]:
        found: list[dict[int, list[str]]] = [{} for _ in sentences]
        ids, word_ids = self._pieces.of_words([sentence.words for sentence in sentences])
        queries: list[tuple[int, int, int]] = []
        rest: list[Sentence] = []
        for number, sentence in enumerate(sentences):
            places: dict[int, list[int]] = {}
            for place, word in enumerate(word_ids[number]):
                places.setdefault(word, []).append(place)
            single = {i for i in sentence.replaceable if len(places.get(i, ())) == 1}
            single = {i for i in single if ids[number][places[i][0]] != self._tokenizer.unk_token_id}
            # Words beyond the model's maximum length are not replaced.
            seen = {i for i in single if places[i][0] < self._longest - 2}
            queries += [(number, i, places[i][0]) for i in sorted(seen)]
            rest.append(Sentence(sentence.words, [i for i in sentence.replaceable if i not in single]))
        for number, others in enumerate(self.others.find(rest)):
            found[number] |= others
        for (number, word, _), candidates in zip(queries, self._predict(ids, queries)):
            found[number][word] = candidates
        return found

    def _predict(self, ids: list[list[int]], queries: list[tuple[int, int, int]]) -> list[list[str]]:
        lengths = [self._length(len(ids[number])) for number, _, _ in queries]
        order = sorted(range(len(queries)), key=lambda q: lengths[q])
        answers: list[list[str]] = [[] for _ in queries]
        for chunk in _chunks(order, lengths, FORWARD_TOKENS["cpu" if self.device.type == "cpu" else "cuda"]):
            batch = [(ids[queries[q][0]], queries[q][2]) for q in chunk]
            for q, tokens in zip(chunk, self._best(batch)):
                answers[q] = [self._pieces.whole_words[token] for token in tokens]
        return answers

    def _length(self, tokens: int) -> int:
        return min(2 * tokens + 3 if 2 * tokens + 3 <= self._longest else tokens + 2, self._longest)

    @torch.inference_mode()
    def _best(self, batch: list[tuple[list[int], int]]) -> list[list[int]]:
        tokenizer = self._tokenizer
        rows, positions = [], []
        for ids, place in batch:
            masked = [*ids[:place], tokenizer.mask_token_id, *ids[place + 1 :]]
            first = [tokenizer.cls_token_id, *masked[: self._longest - 2], tokenizer.sep_token_id]
            second = [*ids, tokenizer.sep_token_id] if 2 * len(ids) + 3 <= self._longest else []
            row = {"input_ids": first + second}
            if "token_type_ids" in tokenizer.model_input_names:
                row["token_type_ids"] = [0] * len(first) + [1] * len(second)
            rows.append(row)
            positions.append(place + 1)
        inputs = tokenizer.pad(rows, pad_to_multiple_of=8, return_tensors="pt").to(self.device)
        self._masked = torch.tensor(positions, device=self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.model(**inputs).logits[:, 0].float()
        return (logits + self._allowed).topk(self.count, dim=1).indices.tolist()


def _chunks(order: list[int], lengths: list[int], tokens: int) -> Iterator[list[int]]:
    """Groups of queries, shortest first, each for one forward pass of at most so many tokens."""
    chunk: list[int] = []
    for q in order:
        if chunk and (len(chunk) + 1) * lengths[q] > tokens:
            yield chunk
            chunk = []
        chunk.append(q)
    if chunk:
        yield chunk


def load_embeddings(folder: Path) -> Tensor:
    """The word embeddings of the model in a folder, (tokens, dimensions). Raises InputError if they would be random."""
    model, random, cause = load_pretrained(AutoModel, folder)
    embeddings = _embeddings_of(model, folder)
    name = next(name for name, weight in model.named_parameters() if weight is embeddings)
    if name in random:
        raise InputError(f"{folder} has no word embeddings ({name} is missing){cause}")
    return embeddings.detach()


def _embeddings_of(model: Any, folder: Path) -> Tensor:
    embeddings: Tensor | None = getattr(model.get_input_embeddings(), "weight", None)
    if embeddings is None:
        raise InputError(
            f"{folder} has no plain word embeddings: it is a split or packed student; name its teacher, or a BERT"
        )
    return embeddings


def load_masked_lm(folder: Path) -> Any:
    """A masked language model with a *trained* head. Raises InputError if its head would be random."""
    model, random, cause = load_pretrained(AutoModelForMaskedLM, folder)
    if random:
        raise InputError(
            f"{folder} has no trained masked-LM head ({random[0]} is missing); use task.augmentation.source=vectors, or "
            f"name a masked language model with task.augmentation.model={cause}"
        )
    return model.eval()


def make_candidates(
    folder: Path,
    tokenizer: Any,
    source: CandidateSource,
    count: int,
    vectors: str | None,
    precision: CandidatePrecision,
    device: str = "cpu",
) -> Candidates:
    """The candidates that an AugmentSpec describes.  folder: of the model.  vectors: a file, or None.

    Raises InputError if the model has no trained masked-LM head but needs one, or if the file is wrong.
    """
    near = VectorCandidates.of_file(Path(vectors).expanduser(), count) if vectors else None
    model = None
    if source != "vectors":
        try:
            model = load_masked_lm(folder)
        except InputError:
            if source == "masked_lm":
                raise
            log.warning("%s has no trained masked-LM head: all candidates come from word vectors", folder.name)
    if near is None:
        matrix = load_embeddings(folder) if model is None else _embeddings_of(model, folder).detach()
        near = VectorCandidates.of_model(matrix, tokenizer, count)
    return near if model is None else MaskedLMCandidates(model, tokenizer, count, near, precision, device)
