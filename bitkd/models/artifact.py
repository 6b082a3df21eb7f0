"""Students on disk: safetensors for the weights, config.json for everything else, never pickle."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from bitkd.errors import InputError
from bitkd.files import follow_umask
from bitkd.models.attention import ATTENTION, use_score_attention
from bitkd.models.encoder import read_spec, write_spec
from bitkd.models.fit import fit_to_weights
from bitkd.models.heads import BARE, CLASSES, Head, head_in, head_of
from bitkd.models.labels import label_order
from bitkd.models.marks import is_artifact, is_packed
from bitkd.models.model_types import guard
from bitkd.models.packed import load_packed
from bitkd.models.prepare import check_recorded
from bitkd.models.student import build_blank
from bitkd.models.unpacked import unpack_student
from bitkd.pretrained.files import check_checkpoint_files
from bitkd.pretrained.load import check_finite, load_pretrained, read_model_config
from bitkd.pretrained.tokenizer import save_tokenizer
from bitkd.store.artifacts import WEIGHTS_FILE, find_foreign


def save_student(model: PreTrainedModel, folder: Path | str, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Write `model` into `folder`: model.safetensors, config.json and the tokenizer's files.

    model: an encoder of a family in `bitkd.quant.layout`, bare or with a head of a kind of task (bitkd.models.heads);
    plain, or made by `build_student`, `prepare` and `WeightSplitting`.
    The same weights give the same bytes: the file's only metadata is {"format": "pt"}.
    Raises InputError if the model is of another kind, or was quantized without a record in its configuration.
    """
    try:
        head_of(model)
    except InputError as error:
        raise InputError(
            f"{type(model).__name__} cannot be loaded again as a student ({error}); save its encoder, model.base_model"
        ) from error
    check_recorded(model)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_spec(model, read_spec(model))
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    if getattr(model.config, "quantization_config", None) is not None:
        guard(folder / "config.json")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    follow_umask(folder / WEIGHTS_FILE)
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder)


def load_student(path: Path | str) -> PreTrainedModel:
    """The model that `save_student` wrote, in eval mode, with identical logits.

    Of a packed folder, it gives the student that `bitkd.unpack_student` makes of it: as exact, and it can be trained.
    `load_packed` and `load_classifier` give the packed model, which takes less memory.
    Raises InputError if the folder is no bitkd artifact, was saved by another version of bitkd, or is damaged.
    """
    folder = Path(path)
    if foreign := find_foreign(folder):
        raise InputError(f"{foreign}; name an artifact as bitkd wrote it")
    config = read_model_config(folder)
    if is_packed(config):
        return unpack_student(load_packed(folder))
    if not is_artifact(config):
        raise InputError(f"{folder} is a plain Hugging Face checkpoint, not a bitkd artifact; use load_classifier")
    if not (folder / WEIGHTS_FILE).is_file():
        raise InputError(f"{folder} has no {WEIGHTS_FILE}; name a finished artifact's folder")
    check_checkpoint_files(folder)
    model = build_blank(config, head_in(config))
    try:
        fit_to_weights(model, folder / WEIGHTS_FILE)
        missing, unexpected = model.load_state_dict(load_file(folder / WEIGHTS_FILE), strict=False)
    except (AttributeError, InputError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder / WEIGHTS_FILE} does not fit its config.json: {error}") from error
    if missing or unexpected:
        raise InputError(
            f"{folder / WEIGHTS_FILE} does not fit its config.json: missing {sorted(missing)[:3]}, "
            f"unexpected {sorted(unexpected)[:3]}; the file is of another version or damaged"
        )
    check_finite(model.state_dict(), folder)
    write_spec(model, read_spec(model))
    return model.eval()


def load_encoder(folder: Path | str) -> PreTrainedModel:
    """The bare pre-trained encoder in a local folder, in eval mode. Raises InputError if some weights are missing or
    damaged, or if it is packed.
    """
    _refuse_packed_folder(folder)
    model, random, cause = load_pretrained(AutoModel, folder, attn_implementation=ATTENTION)
    _refuse_random_encoder(model, random, "", folder, cause)
    return model.eval()


def new_classifier(folder: Path | str, labels: list[str] | None, head: Head = CLASSES) -> PreTrainedModel:
    """The pre-trained encoder in `folder` with a new, random head for `labels` (None: a regression, or a head without classes).

    The head depends on torch's global random state, so set a seed before. Raises InputError if some weights of the
    encoder are missing or damaged, or if it is packed.
    """
    if head is BARE:
        return load_encoder(folder)
    _refuse_packed_folder(folder)
    names = labels or ["score"]
    if not head.has_classes:
        names = ["LABEL_0", "LABEL_1"]  # as transformers names them: the first and the last token of an answer
    settings: dict[str, Any] = {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
    }
    if head is CLASSES:
        settings["problem_type"] = "regression" if labels is None else "single_label_classification"
    model, random, cause = load_pretrained(head.auto_class, folder, attn_implementation=ATTENTION, **settings)
    _refuse_random_encoder(model, random, f"{model.base_model_prefix}.", folder, cause)
    return model


def _refuse_packed_folder(folder: Path | str) -> None:
    if is_packed(read_model_config(folder)):
        raise InputError(
            f"{folder} holds a packed model, which is for inference only; use what it was exported from, or the student that "
            "bitkd.load_student(folder) makes of it"
        )


def _refuse_random_encoder(
    model: PreTrainedModel, random: list[str], prefix: str, folder: Path | str, cause: str
) -> None:
    """Raise InputError if transformers gave random values to encoder weights that the checkpoint lacks, or has in
    another size.  random, cause: see `load_pretrained`.
    """
    use_score_attention(model)
    of_encoder = [name for name in random if name.startswith(prefix) and not name.startswith(f"{prefix}pooler.")]
    if of_encoder:
        raise InputError(
            f"{folder} lacks {len(of_encoder)} weights of its encoder, or has them in another size than its config.json says "
            f"(first: {of_encoder[0]}); model.pretrained= takes a complete pre-trained encoder{cause}"
        )


def load_classifier(folder: Path | str, head: Head = CLASSES) -> PreTrainedModel:
    """A model with a *trained* head, in eval mode, from a bitkd artifact, a packed folder, which stays packed, or a plain
    Hugging Face checkpoint.

    head: of the kind of task that it has to answer.
    Raises InputError if weights are damaged, if the model has another head, or if the head is missing: `from_pretrained`
    would give a random one with only a warning.
    """
    folder = Path(folder)
    config = read_model_config(folder)
    if (found := head_in(config)) not in (head, BARE):
        raise InputError(
            f"{folder} holds a model for {found.name.replace('_', ' ')}, not for {head.name.replace('_', ' ')}; name one that "
            "was trained for this kind of task"
        )
    advice = "name a checkpoint that was fine-tuned for this task, or train one with `bitkd run`"
    if is_artifact(config):
        if not read_spec(config).trained_head or found is not head:
            raise InputError(f"{folder} has no trained head (a task-agnostic or headless student); {advice}")
        return load_packed(folder) if is_packed(config) else load_student(folder)
    if head is BARE:
        model = load_encoder(folder)
    else:
        model, random, cause = load_pretrained(head.auto_class, folder, attn_implementation=ATTENTION)
        use_score_attention(model)
        if random:
            part = "encoder" if any(name.startswith(f"{model.base_model_prefix}.") for name in random) else "head"
            raise InputError(
                f"{folder} has no trained {part}: {random[0]} is missing or of another size; {advice}{cause}"
            )
    spec = read_spec(model)
    spec.trained_head = True
    write_spec(model, spec)
    return model.eval()


def permute_labels(model: Any, task_labels: list[str] | None, names: list[str] | None = None) -> None:
    """Bring the outputs of `model` into the task's label order, by name, in place; see `label_order`.

    task_labels: None for a regression.  names: the checkpoint's own label names in its order, if its config has none
    ("LABEL_0", …). Raises InputError if names cannot be matched, or if the model has no classifier.
    """
    if not head_of(model).has_classes and task_labels is None:
        return
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
