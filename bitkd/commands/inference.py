"""Metrics and predictions of a checkpoint."""

import copy
import logging
import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric import Fabric
from transformers import PreTrainedModel

from bitkd.callbacks.predictions import Predictions
from bitkd.commands.answer_predictor import AnswerPredictor
from bitkd.commands.checkpoints import Checkpoint, open_checkpoint
from bitkd.commands.entity_predictor import EntityPredictor
from bitkd.commands.predictor import Predictor
from bitkd.commands.similarity_predictor import SimilarityPredictor
from bitkd.config.schema import Config
from bitkd.data.batches import MULTIPLE, LoaderSpec
from bitkd.data.files import Rows
from bitkd.data.hub import load_tokenizer
from bitkd.data.metrics import primary_score
from bitkd.data.task_rows import Submission
from bitkd.errors import InputError
from bitkd.models.artifact import label_names, load_classifier, permute_labels
from bitkd.models.heads import HEADS, head_of
from bitkd.models.labels import label_order
from bitkd.models.onnx import load_onnx
from bitkd.quant.layout import input_limits
from bitkd.sources.cache import open_cache
from bitkd.sources.sources import Sources, open_sources
from bitkd.stages.base import StudentModule
from bitkd.stages.spec import SCORE

log = logging.getLogger(__name__)


PREDICTORS: dict[str, type[Predictor]] = {
    "text_classification": Predictor,
    "question_answering": AnswerPredictor,
    "token_classification": EntityPredictor,
    "sentence_similarity": SimilarityPredictor,
}
"""Kind of task -> what predicts texts for it."""


def load_predictor(folder: Path | str, *settings: str) -> Predictor:
    """A predictor of the classifier in a folder: an artifact of bitkd, a packed or an ONNX folder that was exported from one,
    or a plain Hugging Face checkpoint.

        predictor = bitkd.load_predictor("runs/demo/singlestage/single_binary")
        for prediction in predictor.predict([("a dog sleeps .", "a animal rests .")]):
            print(prediction["label"], prediction["scores"])

    settings: key=value, as `bitkd predict` takes them: `data.max_length=` (default: what the student was trained with),
    `data.eval_batch_size=`, `trainer.accelerator=`, `trainer.precision=`.

    Raises InputError if there is no classifier with a trained head, or if a setting is wrong.
    """
    return open_predictor(open_checkpoint(str(folder), list(settings), labels=None, needs_task=False))


def open_predictor(checkpoint: Checkpoint) -> Predictor:
    """The predictor of a checkpoint, with its settings. Its labels are in the task's order, if the task is known."""
    model, config = load_model(checkpoint), checkpoint.config
    task_labels = checkpoint.task.labels if checkpoint.task else checkpoint.labels
    if checkpoint.task or checkpoint.labels:
        permute_labels(model, task_labels, checkpoint.labels)
    predictor = PREDICTORS[head_of(model).name]
    tokenizer = load_tokenizer(checkpoint.folder)
    length = _max_length(checkpoint, model, tokenizer)
    fabric = Fabric(accelerator=config.trainer.accelerator, devices=1, precision=config.trainer.precision)
    return predictor(model, tokenizer, length, config.data.eval_batch_size, fabric, config.task)


@dataclass(frozen=True)
class Measured:
    """What a model does on the dev sets of its task; dictionaries are by dev set."""

    values: dict[str, dict[str, float | None]]
    """The task's metrics and the loss; None if a metric is undefined."""

    scores: dict[str, float]
    """The task's primary metric, larger is better."""

    logits: dict[str, torch.Tensor]
    """(rows, outputs) in FP32, in the rows' order; none if an answer is no class and no number."""


class DevSets:
    """The dev sets of a checkpoint's task, read once: `measure` takes its model in any form.

    model: the checkpoint's, which says how long a row may be.
    rows: rows with labels in place of the task's dev sets.
    Raises InputError if rows or files are damaged, or if data.max_length is more than the model can read.
    """

    def __init__(self, checkpoint: Checkpoint, model: PreTrainedModel, rows: Rows | None = None) -> None:
        self._checkpoint = checkpoint
        self._config = _settings(checkpoint, model)
        sources = _open_sources(self._config)
        data = sources.task_module(_loader(self._config))
        self._names = data.dev_names if rows is None else ["rows"]
        self._source: dict[str, Any] = {"datamodule": data}
        self._metrics = sources.task_rows.metrics
        if rows is not None:
            self._source = {"dataloaders": data.loader_of(sources.task_rows.tokenize(rows, "rows"))}
            self._metrics = lambda: {"rows": sources.task_rows.metrics_on(rows)}

    @property
    def max_length(self) -> int:
        """Tokens of a row at most."""
        return self._config.data.max_length

    def measure(self, model: PreTrainedModel) -> Measured:
        """Metrics and logits of a model, which is left unchanged. Its outputs are brought into the task's order of labels."""
        task, names = self._config.task, self._checkpoint.labels
        if head_of(model).has_classes:
            order = label_order(label_names(model.config), task.labels, names)
            if order != list(range(len(order))):
                model = copy.deepcopy(model)
                permute_labels(model, task.labels, names)
        predictions = Predictions(self._names)
        trainer = _plain_trainer(self._config, predictions)
        metrics = self._metrics()
        module = StudentModule(model, metrics=metrics, score=partial(primary_score, task))
        trainer.validate(module, **self._source, verbose=False)
        found: dict[str, dict[str, float]] = {name: {} for name in metrics}
        for key, value in trainer.callback_metrics.items():
            if key != SCORE:
                dev, _, metric = key.partition("/")
                found[dev][metric] = float(value)
        return Measured(
            {dev: {name: _finite(value) for name, value in values.items()} for dev, values in found.items()},
            {dev: primary_score(task, values) for dev, values in found.items()},
            {} if module.row_scores else {dev: sets["logits"] for dev, sets in predictions.sets.items()},
        )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def evaluate(checkpoint: Checkpoint, rows: Rows | None = None) -> dict[str, float | None]:
    """The task's metrics and the loss of a checkpoint; None if a metric is undefined.

    rows: rows with labels in place of the task's dev sets.

    With several dev sets, each name begins with that of the dev set: `matched/accuracy`.
    """
    model = load_model(checkpoint)
    task = checkpoint.config.task.name
    if checkpoint.record is not None and checkpoint.record.task != task:
        log.warning(
            "the checkpoint was made for task %s, its metrics are those of task %s", checkpoint.record.task, task
        )
    values = DevSets(checkpoint, model, rows).measure(model).values
    if len(values) == 1:
        return next(iter(values.values()))
    return {f"{dev}/{name}": value for dev, found in values.items() for name, value in found.items()}


def predict_set(checkpoint: Checkpoint, name: str) -> Submission:
    """The predictions for a test set, in the form of the task's kind."""
    model, config = _load(checkpoint)
    sources = _open_sources(config)
    loader = sources.task_module(_loader(config)).loader_of(sources.task_rows.test_rows(name))
    batches: Any = _plain_trainer(config).predict(StudentModule(model), dataloaders=loader)
    return sources.task_rows.submission(name, batches)


def _load(checkpoint: Checkpoint) -> tuple[PreTrainedModel, Config]:
    """The model with outputs in the task's order, and the settings with its folder and a length that it can read."""
    model = load_model(checkpoint)
    permute_labels(model, checkpoint.config.task.labels, checkpoint.labels)
    return model, _settings(checkpoint, model)


def load_model(checkpoint: Checkpoint) -> PreTrainedModel:
    """The classifier of a checkpoint, in eval mode. That of an ONNX folder has what evaluation and prediction need of one."""
    if checkpoint.onnx:
        classifier: Any = load_onnx(checkpoint.folder)
        model: PreTrainedModel = classifier
        return model
    return load_classifier(checkpoint.folder, HEADS[checkpoint.config.task.kind])


def _settings(checkpoint: Checkpoint, model: PreTrainedModel) -> Config:
    """The settings with the checkpoint's folder, for its tokenizer, and a length that the model can read."""
    config = checkpoint.config
    length = _max_length(checkpoint, model, load_tokenizer(checkpoint.folder))
    data, source = replace(config.data, max_length=length), replace(config.model, pretrained=str(checkpoint.folder))
    return replace(config, data=data, model=source)


def _max_length(checkpoint: Checkpoint, model: PreTrainedModel, tokenizer: Any) -> int:
    """Tokens of a row at most. Raises InputError if data.max_length is more than the model can read."""
    wanted = checkpoint.config.data.max_length
    # Validation pads batches to a multiple.
    longest = min(input_limits(model).positions, tokenizer.model_max_length) // MULTIPLE * MULTIPLE
    if checkpoint.fixed_length and not MULTIPLE <= wanted <= longest:
        raise InputError(
            f"data.max_length={wanted} is outside what {checkpoint.folder} can read; use {MULTIPLE} to {longest}"
        )
    return min(wanted, longest)


def _open_sources(config: Config) -> Sources:
    """The task's rows, read with the checkpoint's own tokenizer."""
    return open_sources(config, open_cache(config, read_disk=False))


def _loader(config: Config) -> LoaderSpec:
    return LoaderSpec(eval_batch_size=config.data.eval_batch_size, num_workers=config.data.num_workers)


def _plain_trainer(config: Config, *callbacks: pl.Callback) -> pl.Trainer:
    """A Trainer of one process that keeps no log."""
    return pl.Trainer(
        accelerator=config.trainer.accelerator,
        devices=1,
        precision=config.trainer.precision,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
