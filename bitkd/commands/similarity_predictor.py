"""Similarities of pairs of texts, and embeddings of texts."""

from collections.abc import Sequence
from typing import Any

from bitkd.commands.predictor import Predictor
from bitkd.data.tokenized import encode_texts
from bitkd.distill.similarity import pair_cosines


class SimilarityPredictor(Predictor):
    """Predicts the cosine of the embeddings of two texts, or gives the embedding of one."""

    def predict_batch(self, rows: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
        """For each row: {"score": cosine} of a pair, {"embedding": [numbers]} of one text."""
        columns = [list(column) for column in zip(*rows, strict=True)]
        encoded = encode_texts(self._tokenizer, [[text for column in columns for text in column]], self.max_length)
        self.truncated += sum(any(encoded["truncated"][row :: len(rows)]) for row in range(len(rows)))
        embeddings = self.logits(encoded)
        if len(columns) == 1:
            return [{"embedding": embedding} for embedding in embeddings.tolist()]
        return [{"score": cosine} for cosine in pair_cosines(embeddings).tolist()]
