"""Students on disk: safetensors for the weights, config.json for everything else, never pickle."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bitkd.errors import InputError
from bitkd.models.attention import ATTENTION
from bitkd.models.encoder import encoder_layers, remember, spec_of
from bitkd.models.labels import label_order
from bitkd.models.student import build_blank

WEIGHTS = "model.safetensors"


def save_student(model: PreTrainedModel, folder: Path | str, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Write `model` into `folder`: model.safetensors, config.json and the tokenizer's files.

    The same weights give the same bytes: the file's only metadata is {"format": "pt"}.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    remember(model, spec_of(model))
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def load_student(path: Path | str) -> PreTrainedModel:
    """The model that `save_student` wrote, in eval mode, with identical logits.

    Raises InputError for a folder that is no bitkd artifact or whose tensors do not fit its configuration.
    """
    folder = Path(path)
    config = load_config(folder)
    if not is_artifact(config):
        raise InputError(f"{folder} is a plain Hugging Face checkpoint, not a bitkd artifact; use load_classifier")
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"{folder} has no {WEIGHTS}; name a finished artifact's folder")
    classification = "SequenceClassification" in (config.architectures or [""])[0]
    model = build_blank(config, classification)
    try:
        missing, unexpected = model.load_state_dict(load_file(folder / WEIGHTS), strict=False)
    except RuntimeError as error:
        raise InputError(f"{folder / WEIGHTS} does not fit its config.json: {error}") from error
    if missing or unexpected:
        raise InputError(
            f"{folder / WEIGHTS} does not fit its config.json: missing {sorted(missing)[:3]}, "
            f"unexpected {sorted(unexpected)[:3]}; the file is of another version or damaged"
        )
    return model.eval()


def load_config(folder: Path | str) -> PretrainedConfig:
    """The configuration in a local folder; InputError where there is none."""
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise InputError(f"{folder} is no checkpoint: it has no config.json; name a folder with a saved model")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is not valid JSON ({error}); name a folder with a saved model") from error
    if "model_type" not in content:
        raise InputError(f"{file} names no model_type; name a folder with a saved Hugging Face model")
    return AutoConfig.from_pretrained(str(folder))


def is_artifact(config: PretrainedConfig) -> bool:
    """Whether a configuration comes from `save_student`."""
    return getattr(config, "bitkd", None) is not None


def load_encoder(folder: Path | str) -> PreTrainedModel:
    """The bare pre-trained encoder in a local folder, in eval mode, every weight of it trained."""
    model, report = AutoModel.from_pretrained(
        str(folder), attn_implementation=ATTENTION, dtype=torch.float32, output_loading_info=True
    )
    _refuse_random_encoder(model, report, "", folder)
    return model.eval()


def new_classifier(folder: Path | str, labels: list[str] | None) -> PreTrainedModel:
    """The pre-trained encoder in `folder` under a new, random head for `labels` (null: regression).

    The head comes from torch's global random state: seed before.
    """
    names = labels or ["score"]
    model, report = AutoModelForSequenceClassification.from_pretrained(
        str(folder),
        attn_implementation=ATTENTION,
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
        problem_type="regression" if labels is None else "single_label_classification",
        dtype=torch.float32,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    _refuse_random_encoder(model, report, f"{model.base_model_prefix}.", folder)
    return model


def _refuse_random_encoder(model: PreTrainedModel, report: dict[str, Any], prefix: str, folder: Path | str) -> None:
    """transformers starts weights that a checkpoint lacks, or has in another size, at random."""
    encoder_layers(model)
    missing = [k for k in report["missing_keys"] if k.startswith(prefix) and not k.startswith(f"{prefix}pooler.")]
    mismatched = [k for k, *_ in report.get("mismatched_keys", ()) if k.startswith(prefix)]
    random = sorted([*missing, *mismatched])
    if random:
        raise InputError(
            f"{folder} lacks {len(random)} weights of its encoder, or has them in another size than its config.json says "
            f"(first: {random[0]}); model.pretrained= takes a complete pre-trained encoder"
        )


def load_classifier(folder: Path | str) -> PreTrainedModel:
    """A classifier with a *trained* head from a bitkd artifact or a plain Hugging Face checkpoint, in eval mode.

    `from_pretrained` starts a missing head at random with no more than a warning; here that is an InputError.
    """
    folder = Path(folder)
    config = load_config(folder)
    advice = "name a checkpoint that was fine-tuned for this task, or train one with `bitkd run`"
    if is_artifact(config):
        if not spec_of(config).trained_head:
            raise InputError(f"{folder} has no trained head (a task-agnostic or headless student); {advice}")
        return load_student(folder)
    model, report = AutoModelForSequenceClassification.from_pretrained(
        str(folder),
        attn_implementation=ATTENTION,
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    encoder_layers(model)
    missing = sorted(report["missing_keys"]) + sorted(str(k) for k in report.get("mismatched_keys", ()))
    if missing:
        raise InputError(f"{folder} has no trained head: {missing[0]} is missing; {advice}")
    spec = spec_of(model)
    spec.trained_head = True
    remember(model, spec)
    return model.eval()


def permute_labels(model: Any, task_labels: list[str] | None, names: list[str] | None = None) -> None:
    """Bring the outputs of `model` into the task's label order, by name, in place; see `label_order`.

    names: the checkpoint's own label names in its order, where its config has none ("LABEL_0", …).
    """
    order = label_order(label_names(model.config), task_labels, names)
    if task_labels is None:
        return
    output = _output_layer(model)
    with torch.no_grad():
        output.weight.copy_(output.weight[order].clone())
        output.bias.copy_(output.bias[order].clone())
    model.config.id2label = dict(enumerate(task_labels))
    model.config.label2id = {name: i for i, name in enumerate(task_labels)}


def label_names(config: Any) -> list[str]:
    """A classifier's own label names, in the order of its outputs."""
    return [config.id2label[i] for i in range(config.num_labels)]


def _output_layer(model: Any) -> torch.nn.Linear:
    linears = [m for m in model.classifier.modules() if isinstance(m, torch.nn.Linear)]
    return linears[-1]
