"""What an optimizer step of each stage will cost, before any is trained."""

import copy
import math
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from bitkd.config.schema import PRETRAINED, micro_batches
from bitkd.data.base import TokenizedDataModule, lengths_of
from bitkd.data.batches import MULTIPLE
from bitkd.data.sampler import TrainBatchSampler
from bitkd.models.encoder import encoder_layers, spec_of
from bitkd.models.importance import Importance
from bitkd.pipeline.build import build_module, finish_student, load_upstream
from bitkd.pipeline.planned import Plan, PlannedStage
from bitkd.quant.splitting import split_ternary_
from bitkd.stages.flops import row_flops
from bitkd.stages.kinds import AUGMENT


def step_flops(plan: Plan) -> dict[str, float]:
    """FLOPs of an optimizer step of each stage that trains, over all processes, the teacher's forwards included.

    Counted on untrained models of the stages' shapes, at the lengths of the first pass over the stage's rows (of a stage on
    augmented rows: over the originals; of a stream: at full length).
    """
    costs: dict[str, float] = {}
    made: dict[str, PreTrainedModel] = {}
    for stage in plan.stages:
        if stage.spec.kind == AUGMENT:
            continue
        module = build_module(plan, stage, partial(_upstream, plan, made), _any_heads)
        if stage.spec.kind == "split":
            split_ternary_(module)
        if stage.trains:
            curves = row_flops(module, _example(plan))
            costs[stage.name] = stage.train.batch_size * float(
                sum(c * power for curve in curves for c, power in zip(curve, _mean_powers(plan, stage)))
            )
        made[stage.name] = finish_student(stage, module).requires_grad_(True)
        later = plan.stages[plan.stages.index(stage) + 1 :]
        made = {name: model for name, model in made.items() if any(name in s.upstream.values() for s in later)}
    return costs


def _upstream(plan: Plan, made: dict[str, PreTrainedModel], name: str) -> PreTrainedModel:
    return load_upstream(plan, name) if name == PRETRAINED else copy.deepcopy(made[name])


def _any_heads(source: PreTrainedModel) -> Importance:
    """Which heads and neurons a student keeps changes no cost."""
    spec, layers = spec_of(source), len(encoder_layers(source))
    return Importance(torch.ones(layers, spec.heads), torch.ones(layers, spec.neurons))


def _example(plan: Plan) -> dict[str, Any]:
    labels = torch.zeros(1) if plan.config.task.labels is None else torch.zeros(1, dtype=torch.long)
    tokens = torch.ones(1, 1, dtype=torch.long)
    return {name: tokens for name in plan.sources.tokenizer.model_input_names} | {"labels": labels}


def _mean_powers(plan: Plan, stage: PlannedStage) -> tuple[float, float, float]:
    """Means of 1, length and length squared over the padded rows of a stage's first pass."""
    general = stage.spec.kind == "general"
    data: TokenizedDataModule = plan.sources.corpus_data if general else plan.sources.task_data
    if data.train_rows is None:  # a stream
        return 1.0, float(plan.config.data.max_length), float(plan.config.data.max_length**2)
    steps = (plan.facts.corpus if general else plan.facts.task).steps_per_epoch(stage.train.batch_size)
    lengths = lengths_of(data.train_rows)
    sampler = TrainBatchSampler(lengths, stage.train.batch_size, steps, seed=0)  # seeds of one arm get equal steps
    parts = micro_batches(plan.config.trainer)  # each is padded to its own longest row
    longest = [lengths[batch[part::parts]].max() for batch in sampler for part in range(parts)]
    padded = np.array([math.ceil(length / MULTIPLE) * MULTIPLE for length in longest])
    return 1.0, float(padded.mean()), float((padded**2).mean())
