import pickle
import threading

import numpy as np
import pytest
import torch
from datasets import Dataset, concatenate_datasets

from bitkd.data.loader import Loader
from bitkd.data.tokenized import Batches, Padding, collate, encode_apart

INPUTS = ["input_ids", "token_type_ids", "attention_mask"]


@pytest.fixture(params=[(INPUTS, "right"), (INPUTS, "left"), (["input_ids", "attention_mask"], "right")])
def tokenizer(request, tiny_tokenizer):
    """With token types, with padding on the left, and without token types, as RoBERTa; no padding is zero."""
    model_inputs, side = request.param
    kept = {name: getattr(tiny_tokenizer, name) for name in ("model_input_names", "padding_side", "pad_token")}
    tiny_tokenizer.model_input_names, tiny_tokenizer.padding_side = model_inputs, side
    tiny_tokenizer.pad_token = tiny_tokenizer.sep_token
    yield tiny_tokenizer
    for name, value in kept.items():
        setattr(tiny_tokenizer, name, value)


def make_rows(tokenizer, count=40, label=float):
    """Rows of 3 to 20 tokens in three parts of a table."""
    random = np.random.default_rng(0)
    rows = []
    for index in range(count):
        tokens = int(random.integers(3, 21))
        row = {"input_ids": random.integers(5, 20, tokens).tolist(), "token_type_ids": [0] * 2 + [1] * (tokens - 2)}
        row |= {"attention_mask": [1] * tokens, "length": tokens, "label": label(index / 3), "index": index}
        rows.append(
            {name: value for name, value in row.items() if name in (*tokenizer.model_input_names, "label", "index")}
        )
    parts = np.split(np.array(rows, dtype=object), [7, 25])
    return concatenate_datasets([Dataset.from_list(list(part)) for part in parts])


def padded(tokenizer, rows):
    """The batch that the tokenizer itself makes of rows."""
    inputs = [{name: row[name] for name in tokenizer.model_input_names if name in row} for row in rows]
    batch = dict(tokenizer.pad(inputs, pad_to_multiple_of=8, return_tensors="pt"))
    return batch | {
        name + "s" * (name == "label"): torch.tensor([row[name] for row in rows])
        for name in ("label", "index")
        if name in rows[0]
    }


def assert_same(batch, expected):
    assert batch.keys() == expected.keys()
    for name, values in expected.items():
        assert batch[name].dtype == values.dtype, name
        assert torch.equal(batch[name], values), name


@pytest.mark.parametrize("label", [int, float])
def test_a_batch_is_what_the_tokenizer_pads(tokenizer, label):
    rows = make_rows(tokenizer, label=label)
    padding = Padding.of(tokenizer)
    chosen = [39, 0, 6, 7, 24, 25, 12]
    batches = pickle.loads(pickle.dumps(Batches(rows, padding)))
    assert_same(batches[chosen], padded(tokenizer, [rows[i] for i in chosen]))
    # Rows that were selected from others, and rows without a mask, as augmented ones are.
    some = rows.select([30, 2, 11, 3])
    assert_same(Batches(some, padding)[[3, 0]], padded(tokenizer, [rows[3], rows[30]]))
    bare = rows.remove_columns("attention_mask")
    assert_same(Batches(bare, padding)[chosen], padded(tokenizer, [rows[i] for i in chosen]))
    assert_same(Batches(rows.select(range(26, 40)), padding)[[0, 1]], padded(tokenizer, [rows[26], rows[27]]))


def test_a_batch_of_pairs_holds_the_first_texts_then_the_second(tiny_tokenizer):
    texts = [["a dog", "a small cat sleeps", "a bird"], ["the horse runs in a garden", "a", "a bird sings"]]
    rows = encode_apart(tiny_tokenizer, texts, 5)
    alone = [[tiny_tokenizer(text, truncation=True, max_length=5) for text in column] for column in texts]
    lengths = [[len(tiny_tokenizer(text)["input_ids"]) for text in column] for column in texts]
    assert rows["length"] == [min(5, max(pair)) for pair in zip(*lengths)]
    assert rows["truncated"] == [max(pair) > 5 for pair in zip(*lengths)]
    pairs = Dataset.from_dict(rows | {"label": [0.5, 1.0, 5.0], "index": [0, 1, 2]})
    expected = padded(tiny_tokenizer, [*(alone[0][i] for i in (2, 0)), *(alone[1][i] for i in (2, 0))])
    batch = Batches(pairs, Padding.of(tiny_tokenizer))[[2, 0]]
    assert_same(batch, expected | {"labels": torch.tensor([5.0, 0.5]), "index": torch.tensor([2, 0])})


def test_a_streams_batch_is_padded_alike(tokenizer):
    rows = [row | {"position": [0, 1, 2, place]} for place, row in enumerate(make_rows(tokenizer, 9))]
    expected = padded(tokenizer, rows) | {"position": torch.tensor([0, 1, 2, 8])}
    del expected["labels"]
    assert_same(collate(Padding.of(tokenizer), rows), expected)


def test_pickled_rows_are_not_copied(tiny_tokenizer, tmp_path):
    make_rows(tiny_tokenizer, 4000).save_to_disk(tmp_path)
    batches = Batches(Dataset.load_from_disk(tmp_path), Padding.of(tiny_tokenizer))
    first = batches[[0]]
    assert len(pickle.dumps(batches)) < 10_000
    assert_same(pickle.loads(pickle.dumps(batches))[[0]], first)


class Squares(torch.utils.data.Dataset):
    """Squares of numbers below ten; it notes the threads that ask."""

    def __init__(self):
        self.asked = []

    def __len__(self):
        return 20

    def __getitem__(self, number):
        self.asked.append((number, threading.current_thread().name))
        if number == 10:
            raise ValueError("10 is too large")
        return torch.tensor(number**2)


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("bitkd-batches")]


def test_batches_are_prepared_ahead_and_the_thread_ends_with_the_iteration():
    squares = Squares()
    loader = Loader(squares, sampler=range(20), batch_size=None, ahead=3, generator=torch.Generator())
    batches = iter(loader)
    assert not squares.asked  # nothing begins before the first batch is taken
    assert not threads()
    state = torch.get_rng_state()
    assert int(next(batches)) == 0
    assert len(threads()) == 1
    batches.close()
    assert not threads()
    assert len(squares.asked) <= 4
    assert {name for _, name in squares.asked} == {"bitkd-batches_0"}
    taken = []
    with pytest.raises(ValueError, match="10 is too large"):
        taken.extend(int(batch) for batch in loader)
    assert taken == [number**2 for number in range(10)]
    assert not threads()
    assert torch.equal(torch.get_rng_state(), state)
