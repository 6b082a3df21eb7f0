"""Predictions of the entities in texts."""

import json
from collections.abc import Sequence
from typing import Any

from bitkd.commands.predictor import Predictor
from bitkd.data.tags import TagScheme
from bitkd.data.word_windows import check_words_tokenizer, encode_words, split_words
from bitkd.errors import InputError


class EntityPredictor(Predictor):
    """Predicts the entities in texts, whose words are what spaces separate. A text may be of any length: it is read in
    windows."""

    texts = (1,)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._scheme = TagScheme(self.labels or [])
        self._overlap = check_words_tokenizer(self._tokenizer, self.max_length, self.task.windows.overlap)

    def predict_batch(self, rows: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
        """For each row of one text: {"entities": [{"text", "label", "start", "end", "score"}]}.

        start, end: characters of the text, [start, end).  score: mean probability of the tags of the entity's words.
        """
        if any(len(row) != 1 for row in rows):
            raise InputError("entities are found in rows of one text; a row has two")
        texts = [text for (text,) in rows]
        split = [split_words(text) for text in texts]
        tags = self.tag([words for words, _ in split])
        return [
            {"entities": self._entities(text, spans, *found)} for text, (_, spans), found in zip(texts, split, tags)
        ]

    def tag(self, sentences: Sequence[Sequence[str]]) -> list[tuple[list[int], list[float]]]:
        """For each sentence of words, the position of each word's tag among the labels, and its probability."""
        found = [([self._scheme.outside] * len(words), [1.0] * len(words)) for words in sentences]
        windows = encode_words(self._tokenizer, sentences, None, self.max_length, self._overlap)
        for start in range(0, len(windows["row"]), self.batch_size):
            part = {name: column[start : start + self.batch_size] for name, column in windows.items()}
            best = self.logits(part).softmax(dim=-1).max(dim=-1)
            for row, words, scores, tags in zip(part["row"], part["word"], best.values, best.indices):
                first = len(scores) - len(words) if self._tokenizer.padding_side == "left" else 0
                for place, word in enumerate(words, start=first):
                    if word >= 0:
                        found[row][0][word], found[row][1][word] = int(tags[place]), float(scores[place])
        return found

    def _entities(
        self, text: str, spans: list[tuple[int, int]], tags: list[int], scores: list[float]
    ) -> list[dict[str, Any]]:
        found = []
        for kind, first, end in self._scheme.entities(tags):
            start, stop = spans[first][0], spans[end - 1][1]
            score = sum(scores[first:end]) / (end - first)
            found.append({"text": text[start:stop], "label": kind, "start": start, "end": stop, "score": score})
        return found

    @property
    def columns(self) -> list[str]:
        return ["entities"]

    def fields(self, prediction: dict[str, Any]) -> list[str]:
        """The entities as JSON."""
        return [json.dumps(prediction["entities"], ensure_ascii=False)]

    def line(self, prediction: dict[str, Any]) -> str:
        """The entities, separated by tabs: such as `2:11 ANIMAL small dog`, with its characters; `-` if there are none."""
        shown = [
            f"{entity['start']}:{entity['end']} {entity['label']} {entity['text']}" for entity in prediction["entities"]
        ]
        return "\t".join(shown) or "-"
