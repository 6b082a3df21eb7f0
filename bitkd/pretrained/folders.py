"""Checks of a model's folder before a library reads it: what its JSON files say may make a library read other files, run code,
or never end.
"""

import math
from pathlib import Path
from typing import Any

from bitkd.errors import InputError
from bitkd.names import shown
from bitkd.pretrained.files import read_config_data, read_object
from bitkd.store.artifacts import find_foreign

LARGEST = {
    ("num_hidden_layers", "n_layers", "num_attention_heads", "n_heads"): 10_000,
    ("hidden_size", "dim", "intermediate_size", "hidden_dim", "embedding_size"): 1_000_000,
    ("vocab_size", "max_position_embeddings", "type_vocab_size"): 100_000_000,
}
"""Sizes in a config.json -> their limits, far above those of any encoder."""


def check_model_folder(folder: Path) -> None:
    """Check config.json and tokenizer_config.json in a model's folder.

    Raises InputError if one is no JSON object, if a size is none that an encoder has, if the folder is an adapter of another
    model, or if an artifact has links in it.
    """
    if foreign := find_foreign(folder):
        raise InputError(f"{foreign}; name a folder with a saved model")
    if (folder / "adapter_config.json").exists():
        raise InputError(
            f"{folder} is an adapter (adapter_config.json), which names another model to load; merge it into its model first"
        )
    config = read_config_data(folder)
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
    if (settings := folder / "tokenizer_config.json").is_file():
        read_object(settings)
