"""The commands evaluate and predict, for checkpoints of bitkd and of transformers. They check their input before torch
is imported."""

import argparse
from pathlib import Path

from bitkd.commands.output import print_json
from bitkd.config.load import load_config
from bitkd.config.schema import Config
from bitkd.data.hub import resolve_pretrained
from bitkd.data.tasks import check_metrics, check_task, check_test_set
from bitkd.errors import InputError
from bitkd.files import read_json
from bitkd.models.labels import label_order
from bitkd.pipeline.checks import check_files
from bitkd.processes.libraries import quieten
from bitkd.report.console import Console
from bitkd.report.fitted import FittedTable
from bitkd.store.artifacts import STAGE_FILE, Store, read_artifact
from bitkd.store.records import StageRecord
from bitkd.store.run_folder import MANIFEST, RunFolder


def evaluate_command(arguments: argparse.Namespace) -> int:
    """Print the task's metrics of a checkpoint; returns the exit code."""
    config = _task_config(arguments.settings)
    check_files(config, [config.task.files.train, *config.task.files.dev.values()])
    folder = _checkpoint_folder(arguments, config)
    record = _stage_record(folder)
    from bitkd.commands.inference import evaluate

    quieten()
    values = evaluate(config, folder, _labels(arguments), record)
    if arguments.json:
        print_json({"metrics": values})
    else:
        rows = [[name, "undefined" if value is None else f"{value:.4f}"] for name, value in values.items()]
        Console().print(FittedTable(["metric", "value"], rows))
    return 0


def predict_command(arguments: argparse.Namespace) -> int:
    """Print predictions for texts, or write a submission; returns the exit code."""
    split = [text for text in arguments.settings if text.startswith("split=")]
    if split or arguments.out:
        return _write_submission(arguments, [text for text in arguments.settings if text not in split], split)
    texts, pairs = arguments.text, arguments.text_pair
    if not texts:
        raise InputError("there is nothing to predict; give --text, or task=NAME split=NAME --out FILE")
    if pairs is not None and len(pairs) != len(texts):
        raise InputError(f"{len(texts)} --text and {len(pairs)} --text-pair were given; give one pair for each text")
    config = load_config(arguments.settings, require=("task",)) if arguments.settings else None
    folder = _checkpoint_folder(arguments, config)
    _check_texts(folder, pairs is not None)
    from bitkd.commands.inference import predict

    quieten()
    results = predict(folder, texts, pairs, config, _labels(arguments))
    if arguments.json:
        print_json({"predictions": results})
    else:
        for result in results:
            scores = result.get("scores", {"score": result.get("score")})
            print(result.get("label", ""), " ".join(f"{name}={value:.4f}" for name, value in scores.items()), sep="\t")
    return 0


def _write_submission(arguments: argparse.Namespace, settings: list[str], split: list[str]) -> int:
    """Write the predictions for a test set in GLUE's format: index and label, separated by a tab."""
    if not split or not arguments.out or arguments.text:
        raise InputError("a submission needs split=NAME and --out FILE, and no --text")
    config, name = _task_config(settings), split[-1].partition("=")[2]
    check_test_set(config.task, name, local=config.data.dir is not None)
    check_files(config, [config.task.files.test.get(name, "")])
    folder = _checkpoint_folder(arguments, config)
    _check_texts(folder, len(config.task.text) == 2)
    out = Path(arguments.out)
    from bitkd.commands.inference import predict_set

    quieten()
    predictions = predict_set(config, folder, name, _labels(arguments))
    lines = ["index\tprediction", *(f"{i}\t{prediction}" for i, prediction in enumerate(predictions))]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{arguments.out} cannot be written ({error.strerror}); choose another --out") from error
    if arguments.json:
        print_json({"file": arguments.out, "rows": len(predictions)})
    else:
        print(f"{len(predictions)} predictions: {arguments.out}")
    return 0


def _task_config(settings: list[str]) -> Config:
    config = load_config(settings, require=("task",))
    check_task(config.task)
    check_metrics(config.task)
    return config


def _checkpoint_folder(arguments: argparse.Namespace, config: Config | None) -> Path:
    """The checkpoint's folder; InputError if it is none, or if its labels are not those of the configured task."""
    folder = resolve_pretrained(arguments.checkpoint, setting="CHECKPOINT ")
    if (folder / MANIFEST).is_file():
        stages = RunFolder.read(folder).stages
        raise InputError(
            f"{arguments.checkpoint} is a run; name one of its stages: "
            + (", ".join(str(Path(arguments.checkpoint) / name) for name in stages) or "none is finished yet")
        )
    if (folder / STAGE_FILE).is_file() and (damage := Store(folder.parent).find_damage(folder.name)):
        raise InputError(f"{damage}; run its pipeline again: the stage is recomputed")
    if not (folder / "config.json").is_file():
        raise InputError(f"{arguments.checkpoint} has no config.json; name a folder with a saved model")
    content = read_json(folder / "config.json") or {}
    if isinstance(spec := content.get("bitkd"), dict) and spec.get("trained_head") is False:
        raise InputError(
            f"{folder} has no trained head (a task-agnostic or headless student); name a stage that has one"
        )
    own = content.get("id2label")
    if config is not None and own:
        label_order(list(own.values()), config.task.labels, _labels(arguments))
    return folder


def _stage_record(folder: Path) -> StageRecord | None:
    """The stage record of an artifact; None for a plain checkpoint."""
    return read_artifact(folder).stage if (folder / STAGE_FILE).is_file() else None


def _check_texts(folder: Path, pairs: bool) -> None:
    """Raise InputError if an artifact's task reads another number of texts. A plain checkpoint does not record it."""
    record = _stage_record(folder)
    if record is not None and record.texts == 2 and not pairs:
        raise InputError(f"the checkpoint's task {record.task} reads two texts; give --text-pair too")
    if record is not None and record.texts == 1 and pairs:
        raise InputError(f"the checkpoint's task {record.task} reads one text; leave --text-pair out")


def _labels(arguments: argparse.Namespace) -> list[str] | None:
    return [name.strip() for name in arguments.labels.split(",")] if arguments.labels else None
