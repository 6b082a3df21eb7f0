"""Loads models of transformers, and refuses what transformers would load with random or broken weights."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig

from bitkd.errors import InputError, shorten
from bitkd.pretrained.files import check_checkpoint_files, read_config_data

_LAYER = re.compile(r"(^|\.)layers?\.\d+\.")
"""In the name of a weight of a layer."""


def read_model_config(folder: Path | str) -> PretrainedConfig:
    """The Hugging Face configuration in a local folder. Raises InputError if there is none, or if it cannot be read."""
    read_config_data(Path(folder))
    try:
        return AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises many types for a configuration that is wrong
        raise InputError(f"{Path(folder) / 'config.json'} cannot be used: {_first_line(error)}") from error


def load_pretrained(auto: Any, folder: Path | str, **settings: Any) -> tuple[Any, list[str], str]:
    """The model in a local folder, loaded in FP32 by a class of transformers such as AutoModel.

    Returns the model, the sorted names of the weights that transformers made at random, because the file lacks them or
    has them in another size, and what may be the cause, to be put into a message.
    Raises InputError if the files are damaged or have more layers than config.json says, if transformers refuses them,
    or if a weight is not finite.
    """
    read_model_config(folder)
    check_checkpoint_files(Path(folder))
    try:
        model, report = auto.from_pretrained(
            str(folder),
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,
            **settings,
        )
    except InputError:
        raise
    except Exception as error:  # transformers and torch raise many types for weights that are wrong
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            raise
        raise InputError(
            f"{folder} cannot be loaded: {_first_line(error)}; name a folder with a saved model"
        ) from error
    check_finite(model.state_dict(), folder)
    mismatched = {key: shapes for key, *shapes in report.get("mismatched_keys", ())}
    random = sorted([*report["missing_keys"], *mismatched])
    left_out = [name for name in report["unexpected_keys"] if _LAYER.search(name)]
    if left_out and not any(_LAYER.search(name) for name in random):
        raise InputError(
            f"{folder} has weights of layers that its config.json leaves out, such as {min(left_out)}: use the config.json "
            "that belongs to the weights, or save the shorter model with save_pretrained"
        )
    return model, random, _cause(random, mismatched, sorted(report["unexpected_keys"]))


def check_finite(state: Mapping[str, Tensor], folder: Path | str) -> None:
    """Raise InputError if a weight is infinite or no number."""
    wrong = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if wrong:
        raise InputError(
            f"{folder}: {len(wrong)} weights have values that are NaN or infinite (first: {wrong[0]}); its training "
            "diverged or the file is damaged: use another checkpoint"
        )


def _cause(random: list[str], mismatched: dict[str, list[Any]], unexpected: list[str]) -> str:
    """Why weights are absent, as the end of a message; empty if nothing is known.

    random: names of the absent weights.  mismatched: those of them that have another size -> the sizes in the file and
    in the model.  unexpected: names in the file that the model does not have.
    """
    for name in unexpected:
        prefix = next((name.removesuffix(wanted) for wanted in random if name.endswith(f".{wanted}")), None)
        if prefix is not None:
            maker = {"module": " as DataParallel's do", "_orig_mod": " as those of torch.compile do"}
            first = prefix.split(".")[0]
            inner = {"module": "model.module", "_orig_mod": "model._orig_mod"}.get(first, "the inner model")
            return (
                f". The names in the file begin with {first}.{maker.get(first, '')}, such as {name}: save {inner} with "
                "save_pretrained"
            )
    if mismatched:
        name, shapes = next(iter(sorted(mismatched.items())))
        sizes = " and by config.json ".join(str(tuple(shape)) for shape in shapes)
        return f". {name} has the size {sizes}: use the config.json that belongs to the weights"
    ends = {tuple(name.split(".")[-2:]) for name in random}
    other = next((name for name in unexpected if tuple(name.split(".")[-2:]) in ends), None)
    return f". The file has other names, such as {shorten(other)}" if other else ""


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
