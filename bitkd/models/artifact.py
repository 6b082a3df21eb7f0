"""Students on disk: safetensors for the weights, config.json for everything else, never pickle."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
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
from bitkd.models.encoder import encoder_layers, read_spec, write_spec
from bitkd.models.folders import check_model_files
from bitkd.models.labels import label_order
from bitkd.models.prepare import check_recorded
from bitkd.models.student import build_blank
from bitkd.quant.swap import make_blank_pairs
from bitkd.store.artifacts import WEIGHTS_FILE, find_foreign

_FIRST_HALF = ".first.weight"
"""End of the name of a weight that is the first half of a pair."""


def save_student(model: PreTrainedModel, folder: Path | str, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Write `model` into `folder`: model.safetensors, config.json and the tokenizer's files.

    model: an encoder of BERT's shape, bare or a sequence classifier; plain, or made by `build_student`, `prepare` and
    `WeightSplitting`.
    The same weights give the same bytes: the file's only metadata is {"format": "pt"}.
    Raises InputError if the model is of another kind, or was quantized without a record in its configuration.
    """
    if model.base_model is not model and not _is_classifier(type(model).__name__):
        raise InputError(
            f"{type(model).__name__} cannot be loaded again as a student; save its encoder (model.base_model), or use a "
            "model for sequence classification"
        )
    check_recorded(model)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_spec(model, read_spec(model))
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def load_student(path: Path | str) -> PreTrainedModel:
    """The model that `save_student` wrote, in eval mode, with identical logits.

    Raises InputError if the folder is no bitkd artifact, was saved by another version of bitkd, or is damaged.
    """
    folder = Path(path)
    config = read_model_config(folder)
    if not is_artifact(config):
        raise InputError(f"{folder} is a plain Hugging Face checkpoint, not a bitkd artifact; use load_classifier")
    if not (folder / WEIGHTS_FILE).is_file():
        raise InputError(f"{folder} has no {WEIGHTS_FILE}; name a finished artifact's folder")
    model = build_blank(config, _is_classifier((config.architectures or [""])[0]))
    try:
        state = load_file(folder / WEIGHTS_FILE)
        # The file shows which of the binary layers are pairs: a model may be split in part.
        pairs = [name.removesuffix(_FIRST_HALF) for name in state if name.endswith(_FIRST_HALF)]
        make_blank_pairs(model, pairs)
        if read_spec(config).split != bool(pairs):
            raise InputError(f"it has {len(pairs)} pairs of layers")
        # Encoders that were taken out of a classifier may have no pooler.
        if getattr(model, "pooler", None) is not None and not any(name.startswith("pooler.") for name in state):
            model.pooler = None  # type: ignore[assignment]
        missing, unexpected = model.load_state_dict(state, strict=False)
    except (AttributeError, InputError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder / WEIGHTS_FILE} does not fit its config.json: {error}") from error
    if missing or unexpected:
        raise InputError(
            f"{folder / WEIGHTS_FILE} does not fit its config.json: missing {sorted(missing)[:3]}, "
            f"unexpected {sorted(unexpected)[:3]}; the file is of another version or damaged"
        )
    return model.eval()


def _is_classifier(architecture: str) -> bool:
    return "SequenceClassification" in architecture


def read_model_config(folder: Path | str) -> PretrainedConfig:
    """The Hugging Face configuration in a local folder. Raises InputError if there is none."""
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise InputError(f"{folder} is no checkpoint: it has no config.json; name a folder with a saved model")
    if foreign := find_foreign(Path(folder)):
        raise InputError(f"{foreign}; name a folder with a saved model")
    content = check_model_files(Path(folder))
    if "model_type" not in content:
        raise InputError(f"{file} names no model_type; name a folder with a saved Hugging Face model")
    try:
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{file} cannot be used ({str(error).strip().splitlines()[0]}); bitkd runs no code of a model's folder, so name "
            "a model that transformers has itself"
        ) from error


def is_artifact(config: PretrainedConfig) -> bool:
    """Whether a configuration comes from `save_student`."""
    return getattr(config, "bitkd", None) is not None


def load_encoder(folder: Path | str) -> PreTrainedModel:
    """The bare pre-trained encoder in a local folder, in eval mode. Raises InputError if some weights are missing."""
    model, report = AutoModel.from_pretrained(
        str(folder),
        attn_implementation=ATTENTION,
        dtype=torch.float32,
        output_loading_info=True,
        trust_remote_code=False,
    )
    _refuse_random_encoder(model, report, "", folder)
    return model.eval()


def new_classifier(folder: Path | str, labels: list[str] | None) -> PreTrainedModel:
    """The pre-trained encoder in `folder` with a new, random head for `labels` (None: regression).

    The head depends on torch's global random state, so set a seed before. Raises InputError if some weights of the
    encoder are missing.
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
        trust_remote_code=False,
    )
    _refuse_random_encoder(model, report, f"{model.base_model_prefix}.", folder)
    return model


def _refuse_random_encoder(model: PreTrainedModel, report: dict[str, Any], prefix: str, folder: Path | str) -> None:
    """Raise InputError if transformers gave random values to encoder weights that the checkpoint lacks, or has in
    another size."""
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

    Raises InputError if the head is missing: `from_pretrained` would give a random one with only a warning.
    """
    folder = Path(folder)
    config = read_model_config(folder)
    advice = "name a checkpoint that was fine-tuned for this task, or train one with `bitkd run`"
    if is_artifact(config):
        if not read_spec(config).trained_head:
            raise InputError(f"{folder} has no trained head (a task-agnostic or headless student); {advice}")
        return load_student(folder)
    model, report = AutoModelForSequenceClassification.from_pretrained(
        str(folder),
        attn_implementation=ATTENTION,
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        trust_remote_code=False,
    )
    encoder_layers(model)
    missing = sorted(report["missing_keys"]) + sorted(str(k) for k in report.get("mismatched_keys", ()))
    if missing:
        raise InputError(f"{folder} has no trained head: {missing[0]} is missing; {advice}")
    spec = read_spec(model)
    spec.trained_head = True
    write_spec(model, spec)
    return model.eval()


def permute_labels(model: Any, task_labels: list[str] | None, names: list[str] | None = None) -> None:
    """Bring the outputs of `model` into the task's label order, by name, in place; see `label_order`.

    task_labels: None for a regression.  names: the checkpoint's own label names in its order, if its config has none
    ("LABEL_0", …). Raises InputError if names cannot be matched, or if the model has no classifier.
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
    head = getattr(model, "classifier", None)
    linears = [module for module in head.modules() if isinstance(module, torch.nn.Linear)] if head is not None else []
    if not linears:
        raise InputError(f"{type(model).__name__} has no classifier; use a model with a classification head")
    return linears[-1]
