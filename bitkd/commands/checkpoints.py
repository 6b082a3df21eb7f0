"""Commands on checkpoints, bitkd's own and plain ones: evaluate, predict."""

import argparse
import logging
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from rich.table import Table

from bitkd.commands.output import make_console, print_json, quieten
from bitkd.config.load import load_config
from bitkd.config.schema import Config, TrainSpec
from bitkd.data.hub import load_tokenizer, resolve_pretrained
from bitkd.data.metrics import build_metrics, primary_score
from bitkd.data.modules import TaskDataModule
from bitkd.errors import InputError
from bitkd.models.artifact import load_classifier, permute_labels
from bitkd.sources.sources import open_sources
from bitkd.stages.base import SCORE, StudentModule
from bitkd.store.artifacts import STAGE_FILE, Store, read_artifact
from bitkd.store.run_folder import MANIFEST, RunFolder

log = logging.getLogger(__name__)


def evaluate_command(arguments: argparse.Namespace) -> int:
    quieten()
    config = load_config(arguments.settings, require=("task",))
    folder, model = _open_classifier(arguments)
    permute_labels(model, config.task.labels, _labels(arguments))
    if (folder / STAGE_FILE).is_file() and (own := read_artifact(folder).stage.task) != config.task.name:
        log.warning("the checkpoint was made for task %s, its metrics are those of task %s", own, config.task.name)
    config.model.pretrained = str(folder)
    data = open_sources(config).task_module(TrainSpec(), total_batches=1, accumulate=1, seed=0)
    metrics = {name: build_metrics(config.task) for name in data.dev_names}
    module = StudentModule(model, metrics=metrics, score=lambda values: primary_score(config.task, values))
    trainer = _plain_trainer(config)
    trainer.validate(module, datamodule=data, verbose=False)
    measured = {name: float(value) for name, value in trainer.callback_metrics.items() if name != SCORE}
    values = {name: value if math.isfinite(value) else None for name, value in measured.items()}
    if len(data.dev_names) == 1:
        values = {name.split("/", 1)[1]: value for name, value in values.items()}
    if arguments.json:
        print_json({"metrics": values})
    else:
        table = Table("metric", "value", box=None)
        for name, value in values.items():
            table.add_row(name, "undefined" if value is None else f"{value:.4f}")
        make_console().print(table)
    return 0


def predict_command(arguments: argparse.Namespace) -> int:
    quieten()
    split = [text for text in arguments.settings if text.startswith("split=")]
    if split or arguments.out:
        return _write_submission(arguments, [text for text in arguments.settings if text not in split], split)
    texts, pairs = arguments.text, arguments.text_pair
    if not texts:
        raise InputError("there is nothing to predict; give --text, or task=NAME split=NAME --out FILE")
    if pairs is not None and len(pairs) != len(texts):
        raise InputError(f"{len(texts)} --text and {len(pairs)} --text-pair were given; give one pair for each text")
    folder, model = _open_classifier(arguments)
    names, max_length = _labels(arguments), 128
    if arguments.settings:
        config = load_config(arguments.settings, require=("task",))
        permute_labels(model, config.task.labels, names)
        max_length = config.data.max_length
    elif names:
        permute_labels(model, names, names)
    _check_texts(folder, pairs is not None)
    tokenizer = load_tokenizer(str(folder))
    inputs = tokenizer(texts, pairs, truncation=True, max_length=max_length, padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits = model(**inputs).logits.float()
    results: list[dict[str, Any]] = []
    for i, row in enumerate(logits):
        result: dict[str, Any] = {"text": texts[i]} | ({"text_pair": pairs[i]} if pairs else {})
        if len(row) == 1:
            result["score"] = float(row)
        else:
            scores = {model.config.id2label[k]: float(p) for k, p in enumerate(row.softmax(0))}
            result |= {"label": max(scores, key=scores.__getitem__), "scores": scores}
        results.append(result)
    if arguments.json:
        print_json({"predictions": results})
    else:
        for result in results:
            scores = result.get("scores", {"score": result.get("score")})
            print(result.get("label", ""), " ".join(f"{name}={value:.4f}" for name, value in scores.items()), sep="\t")
    return 0


def _write_submission(arguments: argparse.Namespace, settings: list[str], split: list[str]) -> int:
    """Predictions for a test set as GLUE takes them: tab-separated index and prediction, written as its files write labels."""
    if not split or not arguments.out or arguments.text:
        raise InputError("a submission needs split=NAME and --out FILE, and no --text")
    config = load_config(settings, require=("task",))
    folder, model = _open_classifier(arguments)
    permute_labels(model, config.task.labels, _labels(arguments))
    _check_texts(folder, len(config.task.text) == 2)
    config.model.pretrained = str(folder)
    name = split[-1].partition("=")[2]
    task_rows = open_sources(config).task_rows_unread()
    rows = task_rows.test_rows(name)
    trainer = _plain_trainer(config)
    batches: Any = trainer.predict(StudentModule(model), dataloaders=TaskDataModule(task_rows).loader_of(rows))
    order = torch.cat([index for index, _ in batches]).argsort()
    logits = torch.cat([logits for _, logits in batches])[order]
    task = config.task
    if task.labels is None:
        predictions = [f"{score:.3f}" for score in logits[:, 0].tolist()]
    else:
        places = logits.argmax(dim=1).tolist()
        predictions = [task.labels[i] if task.files.labels_as == "names" else str(i) for i in places]
    lines = ["index\tprediction", *(f"{i}\t{prediction}" for i, prediction in enumerate(predictions))]
    try:
        Path(arguments.out).parent.mkdir(parents=True, exist_ok=True)
        Path(arguments.out).write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{arguments.out} cannot be written ({error.strerror}); choose another --out") from error
    if arguments.json:
        print_json({"file": arguments.out, "rows": len(predictions)})
    else:
        print(f"{len(predictions)} predictions: {arguments.out}")
    return 0


def _plain_trainer(config: Config) -> pl.Trainer:
    """A Trainer of one process that keeps no log."""
    return pl.Trainer(
        accelerator=config.trainer.accelerator,
        devices=1,
        precision=config.trainer.precision,  # type: ignore[arg-type]
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def _open_classifier(arguments: argparse.Namespace) -> tuple[Path, Any]:
    folder = resolve_pretrained(arguments.checkpoint, setting="CHECKPOINT ")
    if (folder / MANIFEST).is_file():
        stages = RunFolder.read(folder).stages
        raise InputError(
            f"{arguments.checkpoint} is a run; name one of its stages: "
            + (", ".join(str(Path(arguments.checkpoint) / name) for name in stages) or "none is finished yet")
        )
    if (folder / STAGE_FILE).is_file():
        damage = Store(folder.parent).find_damage(folder.name)
        if damage:
            raise InputError(f"{damage}; run its pipeline again: the stage is recomputed")
    return folder, load_classifier(folder)


def _check_texts(folder: Path, pairs: bool) -> None:
    """An artifact remembers whether its task is of pairs; a plain checkpoint does not say."""
    if not (folder / STAGE_FILE).is_file():
        return
    stage = read_artifact(folder).stage
    wanted = stage.texts
    if wanted == 2 and not pairs:
        raise InputError(f"the checkpoint's task {stage.task} reads two texts; give --text-pair too")
    if wanted == 1 and pairs:
        raise InputError(f"the checkpoint's task {stage.task} reads one text; leave --text-pair out")


def _labels(arguments: argparse.Namespace) -> list[str] | None:
    return [name.strip() for name in arguments.labels.split(",")] if arguments.labels else None
