"""The importance of heads and neurons for a student that is made narrower, and what estimating it costs."""

import time
from collections.abc import Iterator

from torch import Tensor
from transformers import PreTrainedModel

from bitkd.data.batches import LoaderSpec
from bitkd.models.importance import Importance, estimate_importance
from bitkd.pipeline.stage import PlannedStage
from bitkd.sources.sources import Sources
from bitkd.stages.flops import importance_flops

BATCH_ROWS = 32
"""Rows of a batch. Fixed, as their seed is, because the rows that are chosen decide the result and are in no fingerprint."""


class ImportanceEstimate:
    """Estimates importance on a stage's rows. Called with the model that is narrowed.

    flops, seconds: what that took; 0 if no model was narrowed. Every process makes the same estimate; it counts once.
    """

    def __init__(self, stage: PlannedStage, sources: Sources) -> None:
        self._stage, self._sources = stage, sources
        self.flops, self.seconds = 0, 0.0

    def __call__(self, source: PreTrainedModel) -> Importance:
        rows = self._sources.config.data.importance_rows
        began, seen = time.monotonic(), _Seen(sample_batches(self._stage, self._sources, rows))
        found = estimate_importance(source, seen)
        self.seconds = time.monotonic() - began
        self.flops = sum(c * total for c, total in zip(importance_flops(source, seen.last), seen.sums))
        return found


def importance_rows(stage: PlannedStage, sources: Sources) -> list[int]:
    """Sums of 1, padded length and its square over the rows that a stage's importance is estimated on."""
    data = sources.config.data
    if stage.kind.on_corpus and data.streaming:  # it would have to be read
        rows = max(1, data.importance_rows // BATCH_ROWS) * BATCH_ROWS
        return [rows * data.max_length**power for power in range(3)]
    seen = _Seen(sample_batches(stage, sources, data.importance_rows))
    for _ in seen:
        pass
    return seen.sums


class _Seen:
    """Batches, with sums over the rows that were taken of 1, padded length and its square; and the last batch."""

    def __init__(self, batches: Iterator[dict[str, Tensor]]) -> None:
        self._batches = batches
        self.sums = [0, 0, 0]
        self.last: dict[str, Tensor] = {}

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for batch in self._batches:
            rows, length = batch["input_ids"].shape
            self.sums = [total + rows * length**power for power, total in enumerate(self.sums)]
            self.last = batch
            yield batch


def sample_batches(stage: PlannedStage, sources: Sources, rows: int) -> Iterator[dict[str, Tensor]]:
    """Batches of about so many of a stage's training rows; every process and every run of the stage gets the same."""
    loader = LoaderSpec(batch_size=BATCH_ROWS, seed=0)
    data = sources.corpus_module(loader) if stage.kind.on_corpus else sources.task_module(loader)
    return data.importance_batches(rows)
