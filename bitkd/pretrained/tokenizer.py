"""Tokenizers on disk."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path | str) -> None:
    """Write a tokenizer's files, without the truncation and padding that its last call left in it: the same tokenizer
    gives the same bytes.
    """
    if tokenizer.is_fast:
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
    tokenizer.save_pretrained(folder)
