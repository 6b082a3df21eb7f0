"""The cost of an optimizer step of each stage, and of estimating importance, computed before any stage is trained."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from bitkd.config.schema import PRETRAINED, micro_batches
from bitkd.data.batches import MULTIPLE
from bitkd.data.sampler import TrainBatchSampler
from bitkd.data.tokenized import lengths_of
from bitkd.models.artifact import load_encoder
from bitkd.models.calibration import calibrate
from bitkd.models.encoder import encoder_layers, read_spec
from bitkd.models.heads import HEADS
from bitkd.models.importance import Importance
from bitkd.models.prepare import split_ternary_
from bitkd.pipeline.build import build_module, finish_student
from bitkd.pipeline.importance import importance_rows
from bitkd.pipeline.stage import PlannedStage
from bitkd.sources.sources import Sources
from bitkd.stages.flops import importance_flops, row_flops


def count_flops(stages: Sequence[PlannedStage], sources: Sources) -> dict[str, tuple[float, float, float]]:
    """FLOPs of each stage that makes a student, over all processes: of the student and of the teacher in an optimizer step
    (0 if it does not train), and of estimating importance once (0 if it narrows no model).

    Counted on untrained models of the same shapes, with the row lengths of the first pass. A stage on augmented rows
    takes the lengths of the original rows; a stream counts every sequence at full length.
    """
    costs: dict[str, tuple[float, float, float]] = {}
    made: dict[str, PreTrainedModel] = {}

    def load(name: str) -> PreTrainedModel:
        return load_encoder(sources.model) if name == PRETRAINED else copy.deepcopy(made[name])

    for position, stage in enumerate(stages):
        if stage.kind.makes_rows:
            continue
        importance = _AnyHeads(stage, sources)
        module = build_module(stage, sources, load, importance)
        calibrate(module.student, [_example(sources)])  # any values will do
        if stage.kind.splits:
            split_ternary_(module)
        student = teacher = 0.0
        if stage.trains:
            powers = _mean_powers(stage, sources)
            texts = 1 if stage.kind.on_corpus else sources.config.task.of_kind.texts_per_row
            student, teacher = (
                texts * stage.train.batch_size * float(sum(c * power for c, power in zip(curve, powers)))
                for curve in row_flops(module, _example(sources))
            )
        costs[stage.name] = student, teacher, importance.flops
        made[stage.name] = finish_student(stage, module).requires_grad_(True)
        needed = {name for later in stages[position + 1 :] for name in later.upstream.values()}
        made = {name: model for name, model in made.items() if name in needed}
    return costs


class _AnyHeads:
    """Equal importance for all heads and neurons: the cost does not depend on which ones a student keeps.

    flops: what estimating it would take; 0 if no model was narrowed.
    """

    def __init__(self, stage: PlannedStage, sources: Sources) -> None:
        self._stage, self._sources = stage, sources
        self.flops = 0.0

    def __call__(self, source: PreTrainedModel) -> Importance:
        curve = importance_flops(source, _example(self._sources))
        sums = importance_rows(self._stage, self._sources)
        self.flops = float(sum(c * total for c, total in zip(curve, sums)))
        spec, layers = read_spec(source), len(encoder_layers(source))
        return Importance(torch.ones(layers, spec.heads), torch.ones(layers, spec.neurons))


def _example(sources: Sources) -> dict[str, Any]:
    task = sources.config.task
    texts = task.of_kind.texts_per_row
    tokens = torch.ones(texts, 1, dtype=torch.long)
    columns = {name: tokens for name in sources.tokenizer.model_input_names}
    return columns | {
        "labels": HEADS[task.kind].example_labels(task.has_numbers),
        "index": torch.zeros(1, dtype=torch.long),
    }


def _mean_powers(stage: PlannedStage, sources: Sources) -> tuple[float, float, float]:
    """Means of 1, length and length squared over the padded rows of a stage's first pass."""
    config = sources.config
    if config.data.streaming if stage.kind.on_corpus else config.data.pad_to_max_length:
        return 1.0, float(config.data.max_length), float(config.data.max_length**2)
    rows = sources.corpus_rows if stage.kind.on_corpus else sources.task_rows
    facts = sources.corpus if stage.kind.on_corpus else sources.task
    steps = facts.steps_per_epoch(stage.train.batch_size)
    lengths = lengths_of(rows.train)
    sampler = TrainBatchSampler(
        lengths, stage.train.batch_size, steps, seed=0
    )  # one seed: an arm's runs get equal steps
    parts = micro_batches(config.trainer)  # each is padded to its own longest row
    longest = [lengths[batch[part::parts]].max() for batch in sampler for part in range(parts)]
    padded = np.array([math.ceil(length / MULTIPLE) * MULTIPLE for length in longest])
    return 1.0, float(padded.mean()), float((padded**2).mean())
