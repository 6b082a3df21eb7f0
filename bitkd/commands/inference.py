"""Metrics and predictions of a checkpoint."""

import logging
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from bitkd.config.schema import Config
from bitkd.data.batches import LoaderSpec
from bitkd.data.hub import load_tokenizer
from bitkd.data.metrics import build_metrics, primary_score
from bitkd.models.artifact import label_names, load_classifier, permute_labels
from bitkd.sources.cache import open_cache
from bitkd.sources.sources import Sources, open_sources
from bitkd.stages.base import StudentModule
from bitkd.stages.spec import SCORE
from bitkd.store.records import StageRecord

log = logging.getLogger(__name__)

MAX_LENGTH = 128
"""Largest number of tokens of a text if no task is given."""


def evaluate(
    config: Config, folder: Path, labels: list[str] | None, record: StageRecord | None
) -> dict[str, float | None]:
    """The task's metrics and the loss of the checkpoint in `folder`; None if a metric is undefined.

    labels: names of the checkpoint's outputs, if its config has none.  record: of an artifact; None for a plain
    checkpoint.
    With several dev sets, each name begins with that of the dev set: `matched/accuracy`.
    """
    model = load_classifier(folder)
    permute_labels(model, config.task.labels, labels)
    if record is not None and record.task != config.task.name:
        log.warning(
            "the checkpoint was made for task %s, its metrics are those of task %s", record.task, config.task.name
        )
    data = _open_sources(config, folder).task_module(_loader(config))
    metrics = {name: build_metrics(config.task) for name in data.dev_names}
    module = StudentModule(model, metrics=metrics, score=partial(primary_score, config.task))
    trainer = _plain_trainer(config)
    trainer.validate(module, datamodule=data, verbose=False)
    measured = {name: float(value) for name, value in trainer.callback_metrics.items() if name != SCORE}
    values = {name: value if math.isfinite(value) else None for name, value in measured.items()}
    return {name.split("/", 1)[1]: value for name, value in values.items()} if len(metrics) == 1 else values


def predict(
    folder: Path, texts: list[str], pairs: list[str] | None, config: Config | None, labels: list[str] | None
) -> list[dict[str, Any]]:
    """For each text: its label and the probability of every label, or the score of a regression.

    config: gives the label order and the maximum length; None takes the checkpoint's label order and MAX_LENGTH.
    """
    model, max_length = load_classifier(folder), MAX_LENGTH
    if config is not None:
        permute_labels(model, config.task.labels, labels)
        max_length = config.data.max_length
    elif labels:
        permute_labels(model, labels, labels)
    tokenizer = load_tokenizer(folder)
    inputs = tokenizer(texts, pairs, truncation=True, max_length=max_length, padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits = model(**inputs).logits.float()
    results: list[dict[str, Any]] = []
    for i, row in enumerate(logits):
        result: dict[str, Any] = {"text": texts[i]} | ({"text_pair": pairs[i]} if pairs else {})
        if len(row) == 1:
            result["score"] = float(row)
        else:
            scores = {name: float(p) for name, p in zip(label_names(model.config), row.softmax(0))}
            result |= {"label": max(scores, key=scores.__getitem__), "scores": scores}
        results.append(result)
    return results


def predict_set(config: Config, folder: Path, name: str, labels: list[str] | None) -> list[str]:
    """The prediction for each row of a test set, in order, in the form that labels have in the task's files."""
    model, task = load_classifier(folder), config.task
    permute_labels(model, task.labels, labels)
    sources = _open_sources(config, folder)
    loader = sources.task_module(_loader(config)).loader_of(sources.task_rows.test_rows(name))
    batches: Any = _plain_trainer(config).predict(StudentModule(model), dataloaders=loader)
    order = torch.cat([index for index, _ in batches]).argsort()
    logits = torch.cat([logits for _, logits in batches])[order]
    if task.labels is None:
        return [f"{score:.3f}" for score in logits[:, 0].tolist()]
    places = logits.argmax(dim=1).tolist()
    return [task.labels[i] if task.files.labels_as == "names" else str(i) for i in places]


def _open_sources(config: Config, folder: Path) -> Sources:
    """The task's rows, read with the checkpoint's own tokenizer."""
    config = replace(config, model=replace(config.model, pretrained=str(folder)))
    return open_sources(config, open_cache(config, read_disk=False))


def _loader(config: Config) -> LoaderSpec:
    return LoaderSpec(eval_batch_size=config.data.eval_batch_size, num_workers=config.data.num_workers)


def _plain_trainer(config: Config) -> pl.Trainer:
    """A Trainer of one process that keeps no log."""
    return pl.Trainer(
        accelerator=config.trainer.accelerator,
        devices=1,
        precision=config.trainer.precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
