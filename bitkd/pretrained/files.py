"""Checks of a checkpoint's files before they are loaded. It imports no torch, so that planning needs none."""

import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bitkd.errors import InputError
from bitkd.files import POINTER, describe_content

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Names of weights, in the order in which transformers looks for them. An index names the files (shards) of a large model."""

OTHER_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.gguf")

AGAIN = "download or copy it again"
SAVE = "save the model with `model.save_pretrained(FOLDER)`"


def check_checkpoint_files(folder: Path) -> None:
    """Raise InputError, with file, cause and remedy, if the configuration or weights in a folder are not what their names
    say: absent, empty, a git-lfs pointer, cut short, of another format, an index without its shards.
    """
    read_config_data(folder)
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        others = sorted({other.name for pattern in OTHER_WEIGHTS for other in folder.glob(pattern)})
        found = f"it has {', '.join(others[:5])}; " if others else ""
        raise InputError(f"{folder} has no weights ({WEIGHTS[0]} or {WEIGHTS[2]}); {found}{SAVE}")
    if file.suffix != ".json":
        _check_weights(file)
        return
    shards = _shards(file)
    for name, keys in shards.items():
        if not (folder / name).is_file():
            raise InputError(f"{file} names the shard {name}, which is missing; download or copy it too")
        absent = sorted(keys - set(_check_weights(folder / name) or keys))
        if absent:
            raise InputError(f"{folder / name} lacks {absent[0]}, which {file.name} says is in it; {AGAIN}")


def read_config_data(folder: Path) -> dict[str, Any]:
    """The content of config.json in a folder. Raises InputError if it has none, or one without a model type."""
    file = folder / "config.json"
    if not file.is_file():
        raise InputError(f"{folder} is no checkpoint: it has no config.json; name a folder with a saved model")
    content = read_object(file)
    if not isinstance(content.get("model_type"), str):
        raise InputError(f"{file} names no model_type; name a folder with a saved Hugging Face model")
    return content


def check_no_pointers(files: Iterable[Path]) -> None:
    """Raise InputError if one of the files is only git-lfs's pointer to it, or is empty."""
    for file in files:
        head = _head(file)
        if not head or head.startswith(POINTER):
            raise InputError(f"{file} is {describe_content(head) or f'empty; {AGAIN}'}")


def _shards(index: Path) -> dict[str, set[str]]:
    """File name -> names of the tensors in it."""
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise InputError(f"{index} has no weight_map, which says where each weight is; {AGAIN}")
    found: dict[str, set[str]] = {}
    for key, name in places.items():
        if not isinstance(name, str) or Path(name).name != name:
            raise InputError(f"{index} names the shard {name!r}, which is no file beside it; {AGAIN}")
        found.setdefault(name, set()).add(key)
    return found


def _check_weights(file: Path) -> list[str] | None:
    """Raise InputError if a file of weights cannot be read. Returns the tensors' names; None for a pickle, which is not
    opened here.
    """
    check_no_pointers([file])
    head = _head(file)
    if head[:200].lstrip().startswith((b"<!DOCTYPE", b"<!doctype", b"<html")):
        raise InputError(f"{file} is a web page, not weights; download the file itself")
    if file.suffix != ".safetensors":
        if head.startswith(b"PK") and not zipfile.is_zipfile(file):
            raise InputError(f"{file} is cut short; {AGAIN}")
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as stored:
            return list(stored.keys())
    except SafetensorError as error:
        if head.startswith((b"PK\x03\x04", b"\x80")):
            cause = f"is a pickle of torch.save, not safetensors; {SAVE}"
        elif "not fully covered" in str(error) or "invalid header length" in str(error):
            cause = f"is cut short; {AGAIN}"
        else:
            cause = f"is no safetensors file ({error}); {AGAIN}"
        raise InputError(f"{file} {cause}") from error


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises InputError if it holds none."""
    check_no_pointers([file])
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        problem = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise InputError(f"{file} is not valid JSON ({problem}); {AGAIN}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} holds no JSON object but {type(content).__name__}; {AGAIN}")
    return content


def _head(file: Path) -> bytes:
    try:
        with open(file, "rb") as stream:
            return stream.read(256)
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror or error})") from error
