"""The model card of an exported folder: README.md, with the metadata that the Hugging Face hub reads."""

import re
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from bitkd.data.tasks import HOLDOUT
from bitkd.errors import InputError
from bitkd.export.history import History
from bitkd.names import escaped
from bitkd.store.artifacts import Artifact
from bitkd.store.exports import CARD_FILE
from bitkd.store.records import MIB, ExportRecord, SizeRecord

if TYPE_CHECKING:
    from bitkd.export.sizes import FilePart  # which imports torch

LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]{0,39}")
"""Identifiers of licenses on the hub, such as apache-2.0."""

MODEL_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[\w.-]{1,96})?")

METRIC_TYPES = {"matthews": "matthews_correlation", "pearson": "pearsonr", "spearman": "spearmanr"}
"""The task's metrics -> their names on the hub, where these differ."""

LIBRARIES = {"packed": "bitkd", "unpacked": "transformers", "onnx": "onnx"}

_CLASSES = {True: "AutoModelForSequenceClassification", False: "AutoModel"}


@dataclass(frozen=True)
class CardFacts:
    """What a model card tells beside the export's record."""

    title: str
    record: ExportRecord
    history: History
    counted: SizeRecord
    """Of the exported form."""

    file_size: int
    """Bytes of the weights."""

    parts: "list[FilePart]"
    classifier: bool
    notes: list[str] = field(default_factory=list)
    """What else a reader must know of this form, as sentences."""

    base_model: str | None = None
    license: str | None = None
    quantized: bool = True
    """Whether its weights are low-bit ones."""

    split: bool = False
    """Whether its matrices are pairs of 1-bit ones."""


def check_license(name: str | None) -> None:
    """Raise InputError if a text is no license identifier of the hub."""
    if name is not None and not LICENSE.fullmatch(name):
        raise InputError(
            f"--license {name!r} is no license identifier; use one as the hub writes it, such as apache-2.0"
        )


def check_base_model(name: str | None) -> None:
    """Raise InputError if a text is no id of a model on the hub."""
    if name is not None and not MODEL_ID.fullmatch(name):
        raise InputError(
            f"--base-model {name!r} is no id of a model on the hub; use one such as google-bert/bert-base-uncased"
        )


def write_card(folder: Path, facts: CardFacts) -> None:
    """Write README.md into an exported folder."""
    template = files("bitkd.export").joinpath("card.md.j2").read_text(encoding="utf-8")
    card = ModelCard.from_template(_metadata(facts), template_str=template, **_texts(facts))
    (folder / CARD_FILE).write_text(str(card).rstrip() + "\n", encoding="utf-8")


def _metadata(facts: CardFacts) -> ModelCardData:
    record = facts.record
    definition = record.trained_for.definition if record.trained_for else {}
    hub = definition.get("hub") or {}
    from_hub = record.trained_for is not None and record.trained_for.source == "hub"
    relation: dict[str, Any] = (
        {"base_model_relation": "quantized" if facts.quantized else "finetune"} if facts.base_model else {}
    )
    bits = facts.counted.precision.partition("A")[0].removeprefix("W")
    return ModelCardData(
        base_model=facts.base_model,
        license=facts.license,
        library_name=LIBRARIES[record.form],
        pipeline_tag="text-classification" if facts.classifier else "feature-extraction",
        tags=["bitkd", "knowledge-distillation", *(["quantized", f"{bits}-bit"] if facts.quantized else [])],
        datasets=[hub["path"]] if from_hub else None,
        metrics=sorted({_metric_type(name) for values in record.metrics.values() for name in values if name != "loss"})
        or None,
        model_name=facts.title,
        eval_results=[
            EvalResult(
                task_type="text-classification",
                dataset_type=hub["path"] if from_hub else record.task,
                dataset_name=record.task,
                dataset_config=hub.get("name") if from_hub else None,
                dataset_split=(hub.get("dev") or {}).get(dev, dev) if from_hub else dev,
                metric_type=_metric_type(name),
                metric_name=name,
                metric_value=value,
            )
            for dev, name, value in _values(record)
            if value is not None and name != "loss"
        ]
        or None,
        **relation,
    )


def _metric_type(name: str) -> str:
    return METRIC_TYPES.get(name, name)


def _values(record: ExportRecord) -> list[tuple[str, str, float | None]]:
    """(dev set, metric, value) of the sets that are nobody's training rows."""
    sets = {dev: values for dev, values in record.metrics.items() if dev != HOLDOUT}
    return [(dev, name, values[name]) for dev, values in sets.items() for name in sorted(values, key=_loss_last)]


def _loss_last(name: str) -> tuple[bool, str]:
    return name == "loss", name


def _texts(facts: CardFacts) -> dict[str, Any]:
    record = facts.record
    values = [[dev, name, "undefined" if value is None else f"{value:.4f}"] for dev, name, value in _values(record)]
    measured = (
        "measured on this folder's own weights" if record.measured else "those of the artifact that this is made of"
    )
    return {
        "title": escaped(facts.title),
        "summary": _summary(facts),
        "language": "python",
        "load": _load(facts),
        "load_note": " ".join(facts.notes) or _load_note(facts),
        "metrics": _table(["dev set", "metric", "value"], values) if values else "",
        "metrics_note": f"On the dev sets of the task {escaped(record.task)}, {measured}. {_seeds(facts.history)}",
        "sizes": _table(["part", "bytes", "MiB"], _size_rows(facts)),
        "sizes_note": _sizes_note(facts),
        "made": _made(facts),
        "license_note": _license_note(facts),
        "base_note": f"Base model: {facts.base_model}." if facts.base_model else "The base model is not recorded.",
    }


def _summary(facts: CardFacts) -> str:
    record, what = facts.record, "classifier" if facts.classifier else "encoder"
    quantized = (
        f"a BERT-like {what} with {_widths(facts.counted, facts.split)}"
        if facts.quantized
        else f"a BERT-like {what} in FP32"
    )
    task = f", trained for the task {escaped(record.task)}" if record.task and facts.classifier else ""
    labels = (record.trained_for.definition.get("labels") if record.trained_for else None) or []
    named = f" Labels: {', '.join(escaped(str(name)) for name in labels)}." if labels else ""
    return f"This is {quantized}{task}. It was made with bitkd by knowledge distillation.{named}"


def _widths(size: SizeRecord, split: bool) -> str:
    weights, _, inputs = size.precision.removeprefix("W").partition("A")
    pairs = ", each matrix the sum of two" if split else ""
    return (
        f"{weights}-bit weights in its layers{pairs}, and {inputs}-bit inputs of its matrix products ({size.precision})"
    )


def _load(facts: CardFacts) -> str:
    name = _CLASSES[facts.classifier]
    if facts.record.form == "onnx":
        return (
            "import onnxruntime\nfrom transformers import AutoTokenizer\n\n"
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\nsession = onnxruntime.InferenceSession("FOLDER/model.onnx")'
        )
    first = "import bitkd  # transformers then knows the packed weights\n" if facts.record.form == "packed" else ""
    return (
        f"{first}from transformers import {name}, AutoTokenizer\n\n"
        f'model = {name}.from_pretrained("FOLDER")\ntokenizer = AutoTokenizer.from_pretrained("FOLDER")'
    )


def _load_note(facts: CardFacts) -> str:
    if facts.record.form == "packed":
        return "FOLDER is this folder, or its id on the hub. Without `import bitkd` transformers refuses to load it."
    return "FOLDER is this folder, or its id on the hub."


def _seeds(history: History) -> str:
    if not history.stages:
        return ""
    stage = history.stages[-1].stage
    run = f", of a run with seed {history.run_seed}" if history.run_seed is not None else ""
    return f"One model, trained once (seed {stage.seed}{run}): the values of other seeds differ."


def _size_rows(facts: CardFacts) -> list[list[str]]:
    rows = [[part.name, f"{part.size:,}", f"{part.size / MIB:.3f}"] for part in facts.parts]
    return [*rows, ["the whole file", f"{facts.file_size:,}", f"{facts.file_size / MIB:.3f}"]]


def _sizes_note(facts: CardFacts) -> str:
    size = facts.counted
    return (
        f"By the convention of papers, every parameter at the weights' bits and nothing else, it has {size.paper_mib:.3f} MiB "
        f"({size.parameters:,} parameters). A file also has scales, biases, norms, positions and the head, which are not 1-bit. "
        "The tokenizer is not counted."
    )


def _made(facts: CardFacts) -> str:
    history = facts.history
    if not history.stages:
        return "The folder that this was exported from does not record how it was made."
    rows = [_stage_row(artifact) for artifact in history.stages]
    parts = [_table(["stage", "kind", "bits", "steps", "training rows", "seed"], rows)]
    if history.pipeline:
        parts.insert(0, f"Pipeline: {escaped(history.pipeline)}.")
    if not history.complete:
        parts.append("Earlier stages are not recorded beside the artifact.")
    if history.teacher is not None:
        stage = history.teacher.stage
        parts.append(f"Teacher of the last stage: {escaped(stage.title or stage.name)}{_scores(history.teacher)}.")
    rows_made = [artifact.stage.augmented for artifact in history.stages if artifact.stage.augmented is not None]
    parts += [f"Augmented training rows: {made.rows:,}, made of {made.sources:,}." for made in rows_made]
    if not rows_made and history.complete:
        parts.append("The training rows were not augmented.")
    final = history.stages[-1].stage
    versions = ", ".join(f"{escaped(name)} {escaped(version)}" for name, version in final.versions.items())
    parts.append(f"Made {final.created[:10]}" + (f" with {versions}." if versions else "."))
    return "\n\n".join(parts)


def _stage_row(artifact: Artifact) -> list[str]:
    stage = artifact.stage
    bits = stage.size.precision if stage.size else ""
    steps, rows = (f"{stage.steps:,}", f"{stage.examples:,}") if stage.steps else ("", "")
    return [stage.title or stage.name, stage.kind, bits, steps, rows, str(stage.seed)]


def _scores(artifact: Artifact) -> str:
    score = artifact.metrics.score
    return "" if score is None else f" (score {score:.4f})"


def _license_note(facts: CardFacts) -> str:
    if facts.license:
        return f"License: {facts.license}."
    return "No license was named when this was exported. The licenses of the base model and of the training data apply to it."


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [[escaped(cell) for cell in line] for line in (header, *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], ["---"] * len(header), *lines[1:]))
