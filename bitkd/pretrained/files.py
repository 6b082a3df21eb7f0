"""Checks of a checkpoint's files before they are loaded. It imports no torch, so that planning needs none."""

import json
import math
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bitkd.errors import InputError
from bitkd.files import POINTER, describe_content
from bitkd.names import shown

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Names of weights, in the order in which transformers looks for them. An index names the files (shards) of a large model."""

OTHER_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.gguf")

ONNX_FILE = "model.onnx"

ONNX_RECORD = "bitkd_onnx"
"""The entry of config.json that a folder with an ONNX student has: its version, the SHA-256 of model.onnx, and how many tokens
it can read (0 if there is no limit)."""

LARGEST = {
    ("num_hidden_layers", "n_layers", "num_attention_heads", "n_heads"): 10_000,
    ("hidden_size", "dim", "intermediate_size", "hidden_dim", "embedding_size"): 1_000_000,
    ("vocab_size", "max_position_embeddings", "type_vocab_size"): 100_000_000,
}
"""Sizes in a config.json -> their limits, far above those of any encoder."""

MANY = 10**9
"""Numbers of word embeddings that no memory has to spare, if the weights do not hold them."""

AGAIN = "download or copy it again"
SAVE = "save the model with `model.save_pretrained(FOLDER)`"


def check_checkpoint_files(folder: Path) -> None:
    """Raise InputError, with file, cause and remedy, if the configuration or weights in a folder are not what their names
    say: absent, empty, a git-lfs pointer, cut short, of another format, an index without its shards.
    """
    read_config_data(folder)
    file = _weights(folder)
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


def weight_files(folder: Path) -> list[Path]:
    """The files of weights that transformers loads from a folder: one, or the shards of an index; empty if it has none."""
    file = _weights(folder)
    if file is None:
        return []
    return [file] if file.suffix != ".json" else [folder / name for name in _shards(file)]


def _weights(folder: Path) -> Path | None:
    """The file that transformers takes first."""
    return next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)


def read_config_data(folder: Path) -> dict[str, Any]:
    """The content of config.json in a folder. Raises InputError if it has none, or one without a model type."""
    file = folder / "config.json"
    if not file.is_file():
        raise InputError(f"{folder} is no checkpoint: it has no config.json; name a folder with a saved model")
    if (folder / "adapter_config.json").exists():
        raise InputError(
            f"{folder} is an adapter (adapter_config.json), which names another model to load; merge it into its model first"
        )
    content = _read_json(file)
    _check_sizes(content, file)
    weights = content.get("transformers_weights")
    if weights is not None and (not isinstance(weights, str) or Path(weights).name != weights):
        raise InputError(f"{file}: transformers_weights is {shown(str(weights))}, which is no file beside it; {AGAIN}")
    if not isinstance(content.get("model_type"), str):
        raise InputError(
            f"{file} names no model_type; name a folder with a saved Hugging Face model, or write the family into the file if it "
            'lacks that alone: "model_type": "bert" for a BERT or a TinyBERT'
        )
    return content


def _check_sizes(content: dict[str, Any], file: Path) -> None:
    """Raise InputError if a config.json has sizes that no encoder has, or that its weights cannot hold."""
    for names, largest in LARGEST.items():
        for name in names:
            value = content.get(name)
            if isinstance(value, int | float) and not 0 <= value <= largest:
                raise InputError(f"{file}: {name} is {shown(str(value))}; no encoder has more than {largest:,}")
    numbers: list[Any] = [content.get(name) for name in ("vocab_size", "hidden_size")]
    size = sum(other.stat().st_size for pattern in ("*.safetensors", "*.bin") for other in file.parent.glob(pattern))
    if all(isinstance(number, int) for number in numbers) and math.prod(numbers) > max(8 * size, MANY):
        raise InputError(
            f"{file}: vocab_size and hidden_size give {math.prod(numbers):,} numbers, but the weights have only {size:,} "
            f"bytes; {AGAIN}"
        )


def check_no_pointers(files: Iterable[Path]) -> None:
    """Raise InputError if one of the files is only git-lfs's pointer to it, or is empty."""
    for file in files:
        head = _head(file)
        if not head or head.startswith(POINTER):
            raise InputError(f"{file} is {describe_content(head) or f'empty; {AGAIN}'}")


def _shards(index: Path) -> dict[str, set[str]]:
    """File name -> names of the tensors in it."""
    places = _read_json(index).get("weight_map")
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


def _read_json(file: Path) -> dict[str, Any]:
    check_no_pointers([file])
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not valid JSON ({error}); {AGAIN}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} holds no JSON object but {type(content).__name__}; {AGAIN}")
    return content


def _head(file: Path) -> bytes:
    try:
        with open(file, "rb") as stream:
            return stream.read(256)
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror or error})") from error
