"""Checks of a model's folder before a library reads it: what its JSON files say may make a library read other files, run code,
or never end.
"""

import json
import math
from pathlib import Path
from typing import Any

from bitkd.errors import InputError
from bitkd.names import shown

LARGEST = {
    ("num_hidden_layers", "n_layers", "num_attention_heads", "n_heads"): 10_000,
    ("hidden_size", "dim", "intermediate_size", "hidden_dim", "embedding_size"): 1_000_000,
    ("vocab_size", "max_position_embeddings", "type_vocab_size"): 100_000_000,
}
"""Sizes in a config.json -> their limits, far above those of any encoder."""


def check_model_files(folder: Path) -> dict[str, Any]:
    """Check config.json, tokenizer_config.json and the index of the weights in a model's folder.

    Returns the content of config.json.
    Raises InputError if one is no JSON object, names files outside the folder, has sizes that no encoder has, or makes the
    folder an adapter of another model.
    """
    if (folder / "adapter_config.json").exists():
        raise InputError(
            f"{folder} is an adapter (adapter_config.json), which names another model to load; merge it into its model first"
        )
    config = _read(folder / "config.json")
    for names, largest in LARGEST.items():
        for name in names:
            value = config.get(name)
            if isinstance(value, int | float) and not 0 <= value <= largest:
                raise InputError(
                    f"{folder / 'config.json'}: {name} is {shown(str(value))}; no encoder has more than {largest:,}"
                )
    numbers: list[Any] = [config.get(name) for name in ("vocab_size", "hidden_size")]
    size = sum(file.stat().st_size for pattern in ("*.safetensors", "*.bin") for file in folder.glob(pattern))
    if size and all(isinstance(number, int) for number in numbers) and math.prod(numbers) > 8 * size:
        raise InputError(
            f"{folder / 'config.json'}: vocab_size and hidden_size give {math.prod(numbers):,} numbers, but the weights have "
            f"only {size:,} bytes; name a complete model"
        )
    for file in folder.glob("*.index.json"):
        shards = _read(file).get("weight_map")
        for shard in set(map(str, shards.values())) if isinstance(shards, dict) else ():
            if Path(shard).name != shard:
                raise InputError(f"{file} names the file {shown(shard)} in another folder; save the model again")
    _read(folder / "tokenizer_config.json")
    return config


def _read(file: Path) -> dict[str, Any]:
    """A JSON object; empty if there is no such file."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        problem = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise InputError(f"{file} is not valid JSON ({problem}); name a folder with a saved model") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} holds no JSON object; name a folder with a saved model")
    return content
