"""The model card of an exported folder: README.md, with the metadata that the Hugging Face hub reads."""

import json
import re
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from bitkd.data.tasks import HOLDOUT
from bitkd.errors import InputError
from bitkd.export.history import History
from bitkd.models.answers import ANSWERS, ENCODER
from bitkd.names import escaped
from bitkd.store.artifacts import Artifact
from bitkd.store.exports import CARD_FILE
from bitkd.store.records import MIB, ExportRecord, SizeRecord, TaskRecord

if TYPE_CHECKING:
    from bitkd.export.sizes import FilePart  # which imports torch

LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]{0,39}")
"""Identifiers of licenses on the hub, such as apache-2.0."""

MODEL_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[\w.-]{1,96})?")

METRIC_TYPES = {
    "matthews": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "answer_f1": "f1",
    "entity_f1": "f1",
    "entity_precision": "precision",
    "entity_recall": "recall",
}
"""The task's metrics -> their names on the hub, where these differ."""

LIBRARIES = {"packed": "bitkd", "unpacked": "transformers", "onnx": "onnx"}

LOAD_NOTES = {
    "packed": "FOLDER is this folder, or its id on the hub. Without `import bitkd` transformers refuses to load it.",
    "unpacked": "FOLDER is this folder, or its id on the hub. No bitkd is needed.",
    "onnx": "FOLDER is this folder. onnxruntime is needed, and no bitkd. Logits are in the order of `id2label` in config.json.",
}
"""Form -> what follows the code that loads it; the first sentence is for folders that are not on the hub."""


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
    kind: str
    """The kind of task that its class answers (bitkd.models.answers)."""

    trained_head: bool = True
    """Whether its answers mean something."""

    notes: list[str] = field(default_factory=list)
    """What else a reader must know of this form, as sentences."""

    base_model: str | None = None
    license: str | None = None
    quantized: bool = True
    """Whether its weights are low-bit ones."""

    split: bool = False
    """Whether its matrices are pairs of 1-bit ones."""

    @property
    def low_bit(self) -> bool:
        """Whether the written weights are low-bit ones: those of an unpacked folder are FP32 numbers."""
        return self.quantized and self.record.form != "unpacked"

    @property
    def predicts(self) -> bool:
        """Whether it was trained for a task."""
        return self.trained_head

    @property
    def measured_on(self) -> TaskRecord | None:
        """The task of the metrics."""
        return self.record.measured_on or self.record.trained_for

    @property
    def bits(self) -> str:
        """Bits of the student's weights."""
        return self.counted.precision.partition("A")[0].removeprefix("W")


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
    record, trained = facts.record, facts.record.trained_for
    from_hub = trained is not None and trained.source == "hub" and record.stage and facts.predicts
    relation: dict[str, Any] = (
        {"base_model_relation": "quantized" if facts.low_bit else "finetune"} if facts.base_model else {}
    )
    return ModelCardData(
        base_model=facts.base_model,
        license=facts.license,
        library_name=LIBRARIES[record.form],
        pipeline_tag=ANSWERS[facts.kind].tag if facts.predicts else "feature-extraction",
        tags=["bitkd", "knowledge-distillation", *(["quantized", f"{facts.bits}-bit"] if facts.low_bit else [])],
        datasets=[trained.definition["hub"]["path"]] if trained and from_hub else None,
        metrics=sorted({_metric_type(name) for _, name, _ in _values(facts) if name != "loss"}) or None,
        model_name=facts.title,
        eval_results=_eval_results(facts) or None,
        **relation,
    )


def _eval_results(facts: CardFacts) -> list[EvalResult]:
    task = facts.measured_on
    if task is None:
        return []
    name = str(task.definition["name"])
    hub = task.definition.get("hub") or {} if task.source == "hub" else {}
    return [
        EvalResult(
            task_type=ANSWERS[facts.kind].tag,
            dataset_type=hub.get("path") or name,
            dataset_name=name,
            dataset_config=hub.get("name"),
            dataset_split=(hub.get("dev") or {}).get(dev, dev),
            metric_type=_metric_type(metric),
            metric_name=metric,
            metric_value=value,
        )
        for dev, metric, value in _values(facts)
        if value is not None and metric != "loss"
    ]


def _metric_type(name: str) -> str:
    return METRIC_TYPES.get(name, name)


def _values(facts: CardFacts) -> list[tuple[str, str, float | None]]:
    """(dev set, metric, value) of the sets that are nobody's training rows; none of a head that was not trained."""
    sets = {dev: values for dev, values in facts.record.metrics.items() if dev != HOLDOUT} if facts.predicts else {}
    return [(dev, name, values[name]) for dev, values in sets.items() for name in sorted(values, key=_loss_last)]


def _loss_last(name: str) -> tuple[bool, str]:
    return name == "loss", name


def _texts(facts: CardFacts) -> dict[str, Any]:
    values = [[dev, name, "undefined" if value is None else f"{value:.4f}"] for dev, name, value in _values(facts)]
    return {
        "title": escaped(facts.title),
        "summary": _summary(facts),
        "language": "python",
        "load": _load(facts),
        "load_note": " ".join([LOAD_NOTES[facts.record.form], *facts.notes]),
        "metrics": _table(["dev set", "metric", "value"], values) if values else "",
        "metrics_note": _metrics_note(facts),
        "sizes": _table(["part", "bytes", "MiB"], _size_rows(facts)),
        "sizes_note": _sizes_note(facts),
        "made": _made(facts),
        "license_note": _license_note(facts),
        "base_note": f"Base model: {facts.base_model}." if facts.base_model else "The base model is not recorded.",
    }


def _summary(facts: CardFacts) -> str:
    trained = facts.record.trained_for
    definition = trained.definition if trained and facts.predicts else {}
    bare = "encoder" if facts.kind == ENCODER else "encoder with an untrained head"
    what = ANSWERS[facts.kind].noun if facts.predicts else bare
    task = f"{_task(facts)} {escaped(str(definition['name']))}" if definition else ""
    labels = definition.get("labels") or []
    named = f" Labels: {', '.join(escaped(str(name)) for name in labels)}." if labels else ""
    return (
        f"This is a BERT-like {what} {_widths(facts)}{task}. It was made with bitkd by knowledge distillation.{named}"
    )


def _task(facts: CardFacts) -> str:
    """Without a stage, nothing but the settings of the export says what the student was trained for."""
    return ", trained for the task" if facts.record.stage else ", exported for the task"


def _widths(facts: CardFacts) -> str:
    if not facts.quantized:
        return "in FP32"
    precision = facts.counted.precision
    if facts.record.form == "unpacked":
        return f"in FP32, with the values of a {facts.bits}-bit student ({precision})"
    pairs = ", each matrix the sum of two" if facts.split else ""
    inputs = precision.partition("A")[2]
    return f"with {facts.bits}-bit weights in its layers{pairs}, and {inputs}-bit inputs of its matrix products ({precision})"


def _metrics_note(facts: CardFacts) -> str:
    task, trained = facts.measured_on, facts.record.trained_for
    measured = (
        "measured with this folder's own weights"
        if facts.record.measured_on
        else "as the artifact that this is made of records them"
    )
    if task is None:
        return f"On the dev sets of its task, {measured}. {_seeds(facts.history)}".rstrip()
    name = escaped(str(task.definition["name"]))
    notes = [f"On the dev sets of the task {name}, with texts of at most {task.max_length} tokens, {measured}."]
    if trained is not None and trained.definition["name"] != task.definition["name"]:
        notes.append("It was not trained for this task.")
    return " ".join([*notes, _seeds(facts.history)]).rstrip()


def _load(facts: CardFacts) -> str:
    if facts.record.form == "onnx":
        return _load_onnx(facts)
    name, result = ANSWERS[facts.kind].auto, ANSWERS[facts.kind].output
    first = "import bitkd  # transformers then knows the packed weights\n" if facts.record.form == "packed" else ""
    labelled = (
        facts.kind == "text_classification"
        and facts.predicts
        and facts.record.trained_for
        and facts.record.trained_for.definition.get("labels")
    )
    label = "\nprint(model.config.id2label[logits.argmax().item()])" if labelled else ""
    if facts.kind == ENCODER and facts.predicts:
        return _load_embeddings(first, _length(facts))
    return (
        f"import torch\n{first}from transformers import {name}, AutoTokenizer\n\n"
        f'model = {name}.from_pretrained("FOLDER")\ntokenizer = AutoTokenizer.from_pretrained("FOLDER")\n'
        f'inputs = tokenizer({_example(facts)}, truncation=True{_length(facts)}, return_tensors="pt")\n'
        f"with torch.inference_mode():\n    {result} = model(**inputs).{result}{label}"
    )


def _load_embeddings(first: str, length: str) -> str:
    """Each text is read by itself; its embedding is the mean over its tokens."""
    return (
        f"import torch\n{first}from transformers import AutoModel, AutoTokenizer\n\n"
        'model = AutoModel.from_pretrained("FOLDER")\ntokenizer = AutoTokenizer.from_pretrained("FOLDER")\n'
        'texts = ["a text", "another text"]\n'
        f'inputs = tokenizer(texts, padding=True, truncation=True{length}, return_tensors="pt")\n'
        'mask = inputs["attention_mask"].unsqueeze(-1)\n'
        "with torch.inference_mode():\n    hidden = model(**inputs).last_hidden_state\n"
        "embeddings = (hidden * mask).sum(dim=1) / mask.sum(dim=1)  # the mean over each text's tokens\n"
        "print(torch.cosine_similarity(embeddings[0], embeddings[1], dim=0).item())"
    )


def _load_onnx(facts: CardFacts) -> str:
    return (
        "import numpy as np\nimport onnxruntime\nfrom transformers import AutoTokenizer\n\n"
        'folder = "FOLDER"\n'
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        'session = onnxruntime.InferenceSession(f"{folder}/model.onnx")\n'
        f'inputs = tokenizer({_example(facts)}, truncation=True{_length(facts)}, return_tensors="np")\n'
        "kinds = np.zeros_like(inputs.input_ids)  # all of one sentence, where the tokenizer tells none apart\n"
        "feeds = {item.name: inputs.get(item.name, kinds).astype(np.int64) for item in session.get_inputs()}\n"
        'logits = session.run(["logits"], feeds)[0]'
    )


def _example(facts: CardFacts) -> str:
    return '"a text", "another text"' if facts.record.texts == 2 else '"a text"'


def _length(facts: CardFacts) -> str:
    trained = facts.record.trained_for
    return f", max_length={trained.max_length}" if trained else ""


def card_for_hub(card: str, repo: str, revision: str | None = None) -> str:
    """A card with a repository of the hub in place of FOLDER in the code that `write_card` wrote. What was edited stays as it is.

    repo: its id.  revision: a branch other than the main one.
    """
    where = json.dumps(repo) + (f", revision={json.dumps(revision)}" if revision else "")
    runtime, download = "import onnxruntime\n", "from huggingface_hub import snapshot_download\n"
    changes = {
        'from_pretrained("FOLDER")': f"from_pretrained({where})",
        'folder = "FOLDER"\n': f"folder = snapshot_download({where})\n",
        f"{runtime}from transformers": f"{runtime}{download}from transformers",
        **{f"{note.partition('. ')[0]}. ": "" for note in LOAD_NOTES.values()},
    }
    for old, new in changes.items():
        card = card.replace(old, new)
    return card


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
    if not facts.quantized:
        return f"It has {size.parameters:,} parameters in FP32. The tokenizer is not counted."
    every = f"every parameter at {facts.bits} bit{'s' * (facts.bits != '1')} and nothing else"
    paper = f"{size.paper_mib:.3f} MiB ({size.parameters:,} parameters)"
    if facts.low_bit:
        graph = "the graph, " if facts.record.form == "onnx" else ""
        return (
            f"By the convention of papers, {every}, it has {paper}. A file also has {graph}scales, biases, norms, positions and "
            "the head, which have more bits. The tokenizer is not counted."
        )
    return (
        "Every number has 32 bits in this form, so the file is no smaller than that of any FP32 model of its shape. By the "
        f"convention of papers, {every}, the student whose values these are has {paper}. The tokenizer is not counted."
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
