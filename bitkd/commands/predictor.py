"""Predictions of texts, with a model that is loaded once: classes and numbers. Other kinds of tasks derive from it."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor
from transformers import PreTrainedModel

from bitkd.data.tasks import TaskSpec
from bitkd.data.tokenized import encode_texts
from bitkd.models.artifact import label_names
from bitkd.models.heads import head_of
from bitkd.models.inputs import model_inputs


class Predictor:
    """Predicts labels and probabilities of texts, with a classifier that is loaded once; see `load_predictor`."""

    texts: tuple[int, ...] = (1, 2)
    """How many texts a row may have."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        max_length: int,
        batch_size: int,
        fabric: Fabric,
        task: TaskSpec,
    ) -> None:
        names = label_names(model.config)
        self.labels = names if head_of(model).has_classes and len(names) > 1 else None
        """The label names in the order of the outputs; None where answers are no classes."""

        self.max_length = max_length
        """Tokens of a row at most; longer ones are truncated."""

        self.batch_size = batch_size
        self.truncated = 0
        """Rows that were truncated so far."""

        self.task = task
        """The task's settings, as far as they are known."""

        self._tokenizer = tokenizer
        self._fabric = fabric
        self._head = head_of(model)
        self._model: Any = fabric.setup_module(model)

    @property
    def truncation(self) -> str:
        """Which rows are truncated, for messages."""
        return f"rows longer than {self.max_length} tokens were truncated"

    def predict(self, rows: Iterable[str | Sequence[str]]) -> Iterator[dict[str, Any]]:
        """For each row, in order: {"label": …, "scores": {label: probability}}, or {"score": …} of a regression.

        rows: texts, or pairs of texts. They are read and predicted batch by batch, so they may be more than fit into
        memory.
        """
        given = iter(rows)
        while batch := list(islice(given, self.batch_size)):
            yield from self.predict_batch([[row] if isinstance(row, str) else row for row in batch])

    def predict_batch(self, rows: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
        """The predictions of rows of one or two texts, as one batch."""
        texts = [list(column) for column in zip(*rows, strict=True)]
        encoded = encode_texts(self._tokenizer, texts, self.max_length)
        self.truncated += sum(encoded["truncated"])
        logits = self.logits(encoded)
        if self.labels is None:
            return [{"score": score} for score in logits[:, 0].tolist()]
        return [_as_prediction(dict(zip(self.labels, row))) for row in logits.softmax(dim=1).tolist()]

    def logits(self, encoded: dict[str, list[Any]]) -> Tensor:
        """The model's logits for rows of tokens, on the CPU in FP32, in the shape of its head.

        encoded: the tokenizer's columns, a list for each row; others are left out.
        """
        inputs = {name: encoded[name] for name in self._tokenizer.model_input_names if name in encoded}
        batch = self._fabric.to_device(dict(self._tokenizer.pad(inputs, return_tensors="pt")))
        with torch.inference_mode():
            return self._head.logits(self._model(**model_inputs(batch, self._model)), batch).float().cpu()

    @property
    def columns(self) -> list[str]:
        """Names of the columns of a table of predictions, after the row's index."""
        return ["label", *(f"probability_{name}" for name in self.labels)] if self.labels else ["score"]

    def fields(self, prediction: dict[str, Any]) -> list[str]:
        """A prediction as the fields of `columns`."""
        if self.labels is None:
            return [f"{prediction['score']:.6f}"]
        return [prediction["label"], *(f"{prediction['scores'][name]:.6f}" for name in self.labels)]

    def line(self, prediction: dict[str, Any]) -> str:
        """A prediction for people."""
        scores = prediction.get("scores", {"score": prediction.get("score")})
        shown = " ".join(f"{name}={value:.4f}" for name, value in scores.items())
        return f"{prediction.get('label', '')}\t{shown}"


def _as_prediction(scores: dict[str, float]) -> dict[str, Any]:
    return {"label": max(scores, key=scores.__getitem__), "scores": scores}
