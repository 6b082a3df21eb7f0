import pytest
import torch

from bitkd.data.sampler import EvalBatchSampler, TrainBatchSampler
from bitkd.errors import InputError

LENGTHS = torch.randint(3, 60, (203,), generator=torch.Generator().manual_seed(0)).tolist()


def batches(total=60, **settings):
    return list(TrainBatchSampler(LENGTHS, 16, total, **({"seed": 3} | settings)))


def test_no_row_comes_twice_in_an_epoch():
    per_epoch = len(LENGTHS) // 16
    flat = batches(total=2 * per_epoch)
    assert all(len(batch) == 16 for batch in flat)
    for epoch in (flat[:per_epoch], flat[per_epoch:]):
        rows = [row for batch in epoch for row in batch]
        assert len(rows) == len(set(rows)) == per_epoch * 16
    assert flat[:per_epoch] != flat[per_epoch:]


def test_rows_of_a_batch_are_of_like_length():
    spread = [max(LENGTHS[r] for r in batch) - min(LENGTHS[r] for r in batch) for batch in batches(total=12)]
    assert max(spread) < 15


def test_the_rows_left_out_are_not_always_the_longest():
    longest = max(range(len(LENGTHS)), key=LENGTHS.__getitem__)
    assert sum(longest in batch for batch in batches(total=120)) >= 8


def test_an_epoch_is_counted_in_micro_batches():
    sampler = TrainBatchSampler(LENGTHS, 16, 60, seed=0, world_size=2, accumulate=4)
    assert sampler.steps_per_pass == len(LENGTHS) // 16
    assert sampler.batches_per_pass == 4 * sampler.steps_per_pass


def test_the_seed_decides_the_order():
    assert batches() == batches()
    assert batches(seed=4) != batches()


@pytest.mark.parametrize("start", [0, 1, 11, 12, 13, 47, 60])
def test_starting_late_gives_the_tail(start):
    assert batches(start=start) == batches()[start:]
    assert len(TrainBatchSampler(LENGTHS, 16, 60, 3, start=start)) == 60


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (1, 2), (2, 2), (4, 1)])
def test_any_number_of_processes_sees_the_same_effective_batches(world, accumulate):
    shards = [
        batches(total=60 * accumulate, rank=rank, world_size=world, accumulate=accumulate) for rank in range(world)
    ]
    merged = []
    for step in range(60):
        micro = [shard[step * accumulate + part] for shard in shards for part in range(accumulate)]
        assert len({len(rows) for rows in micro}) == 1
        merged.append(sorted(row for rows in micro for row in rows))
    assert merged == [sorted(batch) for batch in batches()]
    tail = batches(total=60 * accumulate, world_size=world, accumulate=accumulate, start=7)
    assert tail == shards[0][7:]


def test_fewer_rows_than_a_batch_give_a_smaller_one():
    few = list(TrainBatchSampler([5, 6, 7, 8, 9], 16, 3, seed=0, world_size=2))
    assert [len(batch) for batch in few] == [2, 2, 2]
    with pytest.raises(InputError, match="batch_size=6 does not divide into 4 equal parts"):
        TrainBatchSampler(LENGTHS, 6, 3, seed=0, world_size=2, accumulate=2)
    with pytest.raises(InputError, match="1 rows cannot be divided among 2"):
        TrainBatchSampler([5], 16, 3, seed=0, world_size=2)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_dev_row_is_seen_exactly_once(world):
    shards = [list(EvalBatchSampler(LENGTHS, 16, rank, world)) for rank in range(world)]
    assert sorted(row for shard in shards for batch in shard for row in batch) == list(range(len(LENGTHS)))
