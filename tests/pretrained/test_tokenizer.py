"""Tokenizers on disk."""

from bitkd.pretrained.tokenizer import save_tokenizer


def test_a_tokenizer_is_saved_alike_whatever_it_was_called_with(tiny_tokenizer, tmp_path):
    calls = ({}, {"truncation": True, "max_length": 8}, {"padding": "max_length", "max_length": 16})
    saved = []
    for number, call in enumerate(calls):
        tiny_tokenizer("a dog runs", **call)
        save_tokenizer(tiny_tokenizer, tmp_path / str(number))
        saved.append({file.name: file.read_bytes() for file in (tmp_path / str(number)).iterdir()})
    assert saved[0] == saved[1] == saved[2]
