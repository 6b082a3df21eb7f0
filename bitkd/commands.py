"""What each command does; `cli` parses, this works."""

import argparse
import json
import logging
import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import transformers
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console
from rich.table import Table

from bitkd.config.load import load_config, to_yaml
from bitkd.config.schema import Config, TrainSpec
from bitkd.data.augment import load_shards
from bitkd.data.hub import load_tokenizer, resolve_pretrained
from bitkd.data.metrics import build_metrics, primary_score
from bitkd.errors import InputError
from bitkd.models.artifact import load_classifier, permute_labels
from bitkd.pipeline.plan import make_plan
from bitkd.pipeline.record import MANIFEST, RunRecord
from bitkd.pipeline.runner import StageFailedError, run
from bitkd.pipeline.sources import open_sources
from bitkd.pipeline.store import STAGE_FILE, Store, read_artifact
from bitkd.report.comparison import RunData, compare_rows, render, write_report
from bitkd.report.mermaid import draw_graph
from bitkd.stages import StudentModule
from bitkd.stages.base import SCORE

EXAMPLES = 10

STOPPED = 143
"""Exit code of a run that SIGTERM stopped."""


def run_command(arguments: argparse.Namespace) -> int:
    _quieten()
    console = _console(stderr=arguments.json)
    config = load_config(arguments.settings)
    try:
        plan = run(config, console, progress_bar=console.is_terminal)
    except StageFailedError as failure:
        rank = rank_zero_only.rank  # type: ignore[attr-defined]
        print(f"bitkd: {f'rank {rank}: ' if rank else ''}{failure}", file=sys.stderr, flush=True)
        return 1
    except SIGTERMException:
        if not _other_rank():
            print("bitkd: stopped by SIGTERM; run the same command again to go on", file=sys.stderr)
        return STOPPED
    if _other_rank():
        return 0
    rows = compare_rows([_run_data(plan.record.folder)])
    if arguments.json:
        _print_json({"run": str(plan.record.folder), "stages": [asdict(row) for row in rows]})
    else:
        console.print(render(rows))
        console.print(f"run: {plan.record.folder}")
    return 0


def plan_command(arguments: argparse.Namespace) -> int:
    _quieten()
    plan = make_plan(load_config(arguments.settings))
    stages: list[dict[str, Any]] = []
    for stage in plan.stages:
        path = plan.store.path(stage.key)
        stages.append(
            {
                "name": stage.name,
                "kind": stage.spec.kind,
                "title": stage.title,
                "inputs": stage.upstream,
                "bits": stage.spec.quant.weight_bits,
                "steps": stage.total_steps if stage.settled else None,
                "fingerprint": stage.fingerprint,
                "state": plan.state(stage),
                "artifact": str(path) if plan.store.finished(stage.key) else None,
            }
        )
    if arguments.json:
        _print_json({"run": str(plan.record.folder), "store": str(plan.store.root), "stages": stages})
    elif arguments.mermaid:
        print(draw_graph(stages))
    else:
        table = Table("", "stage", "kind", "student", "teacher", "steps", "state", box=None)
        for number, row in enumerate(stages, start=1):
            inputs = row["inputs"]
            steps = "?" if row["steps"] is None else row["steps"]
            cells = (row["name"], row["kind"], inputs["student"], inputs.get("teacher", ""), steps, row["state"])
            table.add_row(str(number), *map(str, cells))
        console = _console()
        console.print(table)
        console.print(f"run: {plan.record.folder}\nstore: {plan.store.root}")
    return 0


def augment_command(arguments: argparse.Namespace) -> int:
    _quieten()
    console = _console(stderr=arguments.json)
    config = load_config([*arguments.settings, "task.augmentation.enabled=true"], require=("task",))
    config.stages, config.run.name = {}, config.run.name or "augment"
    try:
        plan = run(config, console)
    except StageFailedError as failure:
        print(f"bitkd: {failure}", file=sys.stderr, flush=True)
        return 1
    if _other_rank():
        return 0
    folder = plan.store.path(plan.stages[0].key)
    facts = read_artifact(folder).stage["augmented"]
    rows = load_shards(folder)
    varied = [i for i in range(min(len(rows), 20 * EXAMPLES)) if i and rows[i]["index"] == rows[i - 1]["index"]]
    examples = [rows[i] for i in varied[:: max(1, len(varied) // EXAMPLES)][:EXAMPLES]]
    if arguments.json:
        shown = [
            {name: row[name] for name in ("text_a", "text_b", "label", "index") if name in row} for row in examples
        ]
        _print_json({"folder": str(folder), **facts, "examples": shown})
        return 0
    originals = plan.sources.task_data.train_texts()
    for row in examples:
        for name in ("text_a", "text_b"):
            if name in row and row[name] != originals[name][row["index"]]:
                console.print(f"row {row['index']}: {originals[name][row['index']]}\n    -> {row[name]}")
    console.print(f"{facts['rows']} rows of {facts['sources']}: {folder}")
    return 0


def evaluate_command(arguments: argparse.Namespace) -> int:
    _quieten()
    config = load_config(arguments.settings, require=("task",))
    folder, model = _open_classifier(arguments)
    permute_labels(model, config.task.labels, _labels(arguments))
    config.model.pretrained = str(folder)
    data = open_sources(config).task_module(TrainSpec(), total_batches=1, accumulate=1, seed=0)
    data.setup("validate")
    metrics = {name: build_metrics(config.task) for name in data.dev_names}
    module = StudentModule(model, metrics=metrics, score=lambda values: primary_score(config.task, values))
    trainer = _plain_trainer(config)
    trainer.validate(module, datamodule=data, verbose=False)
    measured = {name: float(value) for name, value in trainer.callback_metrics.items() if name != SCORE}
    values = {name: value if math.isfinite(value) else None for name, value in measured.items()}
    if len(data.dev_names) == 1:
        values = {name.split("/", 1)[1]: value for name, value in values.items()}
    if arguments.json:
        _print_json({"metrics": values})
    else:
        table = Table("metric", "value", box=None)
        for name, value in values.items():
            table.add_row(name, "undefined" if value is None else f"{value:.4f}")
        _console().print(table)
    return 0


def predict_command(arguments: argparse.Namespace) -> int:
    _quieten()
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
        _print_json({"predictions": results})
    else:
        for result in results:
            scores = result.get("scores", {"score": result.get("score")})
            print(result.get("label", ""), " ".join(f"{name}={value:.4f}" for name, value in scores.items()), sep="\t")
    return 0


def compare_command(arguments: argparse.Namespace) -> int:
    runs = [_run_data(Path(folder)) for folder in arguments.runs]
    rows = compare_rows(runs)
    if arguments.out:
        write_report(rows, Path(arguments.out))
    if arguments.json:
        _print_json({"rows": [asdict(row) for row in rows]})
    else:
        _console().print(render(rows))
        if arguments.out:
            print(f"report: {Path(arguments.out) / 'report.md'}")
    return 0


def config_command(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.settings, require=())
    if arguments.json:
        _print_json(asdict(config))
    else:
        print(to_yaml(config), end="")
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": run_command,
    "plan": plan_command,
    "augment": augment_command,
    "evaluate": evaluate_command,
    "predict": predict_command,
    "compare": compare_command,
    "config": config_command,
}


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
    data = open_sources(config).task_module_alone()
    rows = data.test_rows(name)
    trainer = _plain_trainer(config)
    batches: Any = trainer.predict(StudentModule(model), dataloaders=data.loader_of(rows))
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
        _print_json({"file": arguments.out, "rows": len(predictions)})
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
        stages = RunRecord.read(folder).stages
        raise InputError(
            f"{arguments.checkpoint} is a run; name one of its stages: "
            + (", ".join(str(Path(arguments.checkpoint) / name) for name in stages) or "none is finished yet")
        )
    if (folder / STAGE_FILE).is_file():
        damage = Store(folder.parent).damage(folder.name)
        if damage:
            raise InputError(f"{damage}; run its pipeline again: the stage is recomputed")
    return folder, load_classifier(folder)


def _check_texts(folder: Path, pairs: bool) -> None:
    """An artifact remembers whether its task is of pairs; a plain checkpoint does not say."""
    if not (folder / STAGE_FILE).is_file():
        return
    stage = read_artifact(folder).stage
    wanted = stage.get("texts")
    if wanted == 2 and not pairs:
        raise InputError(f"the checkpoint's task {stage['task']} reads two texts; give --text-pair too")
    if wanted == 1 and pairs:
        raise InputError(f"the checkpoint's task {stage['task']} reads one text; leave --text-pair out")


def _labels(arguments: argparse.Namespace) -> list[str] | None:
    return [name.strip() for name in arguments.labels.split(",")] if arguments.labels else None


def _run_data(folder: Path) -> RunData:
    record = RunRecord.read(folder.expanduser().resolve())
    missing = [name for name, key in record.info["planned"].items() if record.stages.get(name) != key]
    if missing:
        raise InputError(
            f"{folder} is not finished: {', '.join(missing)} missing or of other settings; run it to the end"
        )
    stages = {
        name: {"path": artifact.path, "stage": artifact.stage, "metrics": artifact.metrics}
        for name, artifact in record.artifacts().items()
    }
    return RunData(folder.name, record.info["task"], record.info["metric"], record.info["titles"], stages)


def _console(stderr: bool = False) -> Console:
    """rich's console; where the output is no terminal, wide enough for a table's rows to stay lines."""
    console = Console(stderr=stderr, soft_wrap=True, highlight=False)
    return console if console.is_terminal else Console(stderr=stderr, width=180, highlight=False)


def _print_json(content: Any) -> None:
    print(json.dumps(content, indent=2, ensure_ascii=False))


def _other_rank() -> bool:
    """Whether this is one of the processes that work but neither write nor speak."""
    return rank_zero_only.rank != 0  # type: ignore[attr-defined]


def _quieten() -> None:
    """Keep the libraries' routine remarks off the screen; errors and our own lines stay."""
    transformers.utils.logging.disable_progress_bar()
    # The project's own remarks: counts of truncated or empty rows, where candidates come from.
    own = logging.getLogger("bitkd")
    if not own.handlers and not _other_rank():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("note: %(message)s"))
        own.addHandler(handler)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in _REMARKS:
        warnings.filterwarnings("ignore", message=message)


_REMARKS = (
    ".*does not have many workers.*",
    ".*smaller than the logging interval.*",
    ".*dataloader is not resumable.*",  # ours is: ResumeCheckpoint tells the sampler where to start
    ".*recommended to use `self.log.*sync_dist.*",  # torchmetrics has synchronized the value already
    ".*broadcast_buffers.*deprecated.*",
    ".*LeafSpec.*deprecated.*",
    ".*Trying to infer the `batch_size`.*",
)
