"""What planning needs to know of a source, as plain data that can be cached."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter

from bitkd.files import checksum, digest

T = TypeVar("T")

SAFETENSORS = ("model*.safetensors", "model.safetensors.index.json")
PICKLES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
OTHER_MODEL_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
)


@dataclass(frozen=True)
class ModelInfo:
    """What a model's configuration says."""

    artifact: bool
    """Whether bitkd saved it."""

    positions: int
    """Tokens that it reads at most."""

    token_types: int
    """Kinds of sentences that it tells apart; 0 if it has no table of them."""

    vocabulary: int


@dataclass(frozen=True)
class TokenizerInfo:
    """What is known of a tokenizer."""

    hash: str
    """Of its state."""

    size: int
    """Embeddings that a model needs for it."""

    longest: int
    """Tokens that it gives at most."""


@dataclass(frozen=True)
class RowsInfo:
    """What is known of a task's rows or a corpus."""

    hash: str
    """Of their content."""

    rows: dict[str, int]
    """Rows of each split; the training rows of a stream are not counted."""

    def steps_per_epoch(self, batch_size: int) -> int:
        """Optimizer steps of one pass over the training rows."""
        return max(1, self.rows["train"] // batch_size)


def by_folder(compute: Callable[..., T]) -> Callable[..., T]:
    """A method (self, folder, *settings) whose result depends on the files in `folder`: cached in `self.cache`, as the
    plain data of its annotated type.
    """

    @wraps(compute)
    def cached(self: Any, folder: Path, *settings: str) -> T:
        adapter = _adapter(compute)
        found = self.cache.get(
            compute.__name__,
            [str(folder), *settings],
            folder.glob("*"),
            lambda: adapter.dump_python(compute(self, folder, *settings), mode="json"),
        )
        return adapter.validate_python(found)

    return cached


@cache
def _adapter(compute: Any) -> TypeAdapter[Any]:
    return TypeAdapter(get_type_hints(compute)["return"])


def folder_hash(folder: Path) -> str:
    """Hash of a model's weights, configuration and tokenizer, whatever else is in its folder."""
    weights = SAFETENSORS if any(folder.glob(SAFETENSORS[0])) else PICKLES
    files = sorted({file for pattern in (*weights, *OTHER_MODEL_FILES) for file in folder.glob(pattern)})
    return digest({file.name: checksum(file) for file in files})
