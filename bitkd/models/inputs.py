"""Which columns of a batch a model reads."""

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

NOT_READ = ("labels", "index", "position", "row", "word", "context")
"""Columns of a batch that are about its rows: labels, row numbers, the place in a stream, and where words and contexts are."""


def model_inputs(batch: dict[str, Tensor], model: PreTrainedModel) -> dict[str, Tensor]:
    """The columns of a batch that the model's forward takes as keyword arguments.

    Token types are left out if the model has no table of them, or one with a single row: a teacher may read them where its
    student does not.
    """
    left_out = NOT_READ if reads_token_types(model.config) else (*NOT_READ, "token_type_ids")
    return {name: column for name, column in batch.items() if name not in left_out}


def texts_per_row(batch: dict[str, Tensor]) -> int:
    """How many rows of input_ids belong to a row of the task: 2 where two texts are read one by one."""
    return len(batch["input_ids"]) // len(batch["index"]) if "index" in batch else 1


def reads_token_types(config: PretrainedConfig) -> bool:
    """Whether a model of this configuration tells kinds of sentences apart."""
    return int(getattr(config, "type_vocab_size", 0)) > 1
