import itertools

import lightning.pytorch as pl
import pytest
import torch

from bitkd.config.load import load_config
from bitkd.data.batches import LoaderSpec
from bitkd.data.corpus_rows import StreamRows
from bitkd.data.documents import FileDocuments
from bitkd.data.modules import TaskDataModule
from bitkd.data.stream import StreamDataModule
from bitkd.data.task_rows import TaskRows
from bitkd.errors import InputError


@pytest.fixture
def rows(tiny_tokenizer, tiny_task):
    task = load_config(["task=rte"], require=("task",)).task
    return TaskRows(task, tiny_tokenizer, tiny_task, max_length=20)


@pytest.fixture
def stream(tiny_tokenizer, tiny_task, monkeypatch):
    monkeypatch.setattr("bitkd.data.corpus_rows.HELD_OUT", 10)
    monkeypatch.setattr("bitkd.data.stream.STREAM_BLOCK", 8)
    return StreamRows(FileDocuments([str(tiny_task / "corpus.txt")]), tiny_tokenizer, max_length=16)


class Recorder(pl.LightningModule):
    """Learns nothing; records the rows of every epoch, and how many batches each validation had."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.epochs, self.validations = [], []

    def on_train_epoch_start(self):
        self.epochs.append([])

    def training_step(self, batch, batch_idx):
        self.epochs[-1].append(batch["input_ids"].tolist() if "position" in batch else batch["index"].tolist())
        return self.weight * batch["attention_mask"].sum()

    def on_validation_epoch_start(self):
        self.validations.append(0)

    def validation_step(self, batch, batch_idx):
        self.validations[-1] += len(batch["index"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(data, **settings):
    module = Recorder()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options = {"max_epochs": 2, "enable_checkpointing": False, "num_sanity_val_steps": 0} | quiet | settings
    pl.Trainer(accelerator="cpu", devices=1, **options).fit(module, datamodule=data)
    return module


def flat(batches):
    return list(itertools.chain.from_iterable(batches))


def taken(loader):
    return [batch["index"].tolist() for batch in loader]


@pytest.mark.parametrize("settings", [{}, {"use_distributed_sampler": False}, {"reload_dataloaders_every_n_epochs": 1}])
def test_on_a_plain_trainer_an_epoch_is_one_pass_in_a_new_order(rows, settings):
    module = train(TaskDataModule(rows, LoaderSpec(batch_size=8)), **settings)
    first, second = map(flat, module.epochs)
    assert sorted(first) == sorted(second) == list(range(96))
    assert first != second
    assert module.validations == [33, 33]


def test_accumulation_divides_a_step(rows):
    whole = train(TaskDataModule(rows, LoaderSpec(batch_size=8)))
    parts = train(TaskDataModule(rows, LoaderSpec(batch_size=8, accumulate=2)), accumulate_grad_batches=2)
    for epoch, other in zip(whole.epochs, parts.epochs):
        assert [sorted(a + b) for a, b in zip(other[::2], other[1::2])] == [sorted(batch) for batch in epoch]


def test_with_total_batches_epochs_are_parts_of_one_sequence(rows):
    module = train(TaskDataModule(rows, LoaderSpec(batch_size=8, total_batches=9)))
    [whole] = train(TaskDataModule(rows, LoaderSpec(batch_size=8, total_batches=18)), max_epochs=1).epochs
    assert module.epochs == [whole[:9], whole[9:]]


@pytest.mark.parametrize(
    ("loading", "settings"),
    [
        ({}, {}),
        ({}, {"reload_dataloaders_every_n_epochs": 1}),
        ({"ahead": 3}, {}),
        ({"num_workers": 1}, {"max_epochs": 2}),
    ],
)
def test_only_the_resumed_epoch_begins_late(rows, loading, settings):
    whole = train(TaskDataModule(rows, LoaderSpec(batch_size=8))).epochs
    data = TaskDataModule(rows, LoaderSpec(batch_size=8, **loading))
    data.resume(5, {})
    assert train(data, **settings).epochs == [whole[0][5:], whole[1]]


def test_two_modules_share_rows_that_are_read_once(rows, monkeypatch):
    first = TaskDataModule(rows, LoaderSpec(8))
    expected = taken(first.train_dataloader())
    monkeypatch.setattr("bitkd.data.files.read_rows", None)
    second = TaskDataModule(rows, LoaderSpec(8, seed=1))
    assert taken(second.train_dataloader()) != expected
    assert taken(TaskDataModule(rows, LoaderSpec(8)).train_dataloader()) == expected


def test_batches_are_padded_to_their_own_length(rows):
    for batch in TaskDataModule(rows, LoaderSpec(8)).train_dataloader():
        width = batch["input_ids"].shape[1]
        longest = int(batch["attention_mask"].sum(1).max())
        assert width % 8 == 0
        assert width - longest < 8
        assert set(batch) == {"input_ids", "attention_mask", "token_type_ids", "labels", "index"}


def test_training_batches_can_all_be_padded_to_one_length(rows):
    data = TaskDataModule(rows, LoaderSpec(8, padded_length=20))
    own = TaskDataModule(rows, LoaderSpec(8))
    for batch, short in zip(data.train_dataloader(), own.train_dataloader()):
        assert batch["input_ids"].shape == (8, 20)
        width = min(20, short["input_ids"].shape[1])
        assert torch.equal(batch["input_ids"][:, :width], short["input_ids"][:, :width])
        assert int(batch["attention_mask"][:, width:].sum()) == 0
    assert {batch["input_ids"].shape[1] % 8 for batch in data.val_dataloader()[0]} == {0}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_for_a_gpu_are_pinned_on_a_thread_and_those_for_a_cpu_are_not(rows):
    data = TaskDataModule(rows, LoaderSpec(8))
    for accelerator, on_gpu in (("gpu", True), ("cpu", False)):
        data.trainer = pl.Trainer(accelerator=accelerator, devices=1, logger=False, enable_progress_bar=False)
        loader = data.train_dataloader()
        assert (loader.ahead, next(iter(loader))["input_ids"].is_pinned()) == (2 if on_gpu else 0, on_gpu)


def test_a_loader_does_not_touch_the_global_random_state(rows):
    data = TaskDataModule(rows)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    next(iter(data.train_dataloader()))
    next(iter(data.val_dataloader()[0]))
    assert torch.equal(torch.get_rng_state(), before)


def test_importance_batches_are_the_first_of_a_training_with_their_seed(rows):
    data = TaskDataModule(rows, LoaderSpec(batch_size=8))
    assert taken(data.importance_batches(20)) == taken(data.train_dataloader())[:2]


def test_augmented_rows_take_the_place_of_the_tasks_own(rows, tmp_path):
    data = TaskDataModule(rows, augmented=tmp_path)
    assert data.dev_names == ["dev"]
    with pytest.raises(InputError, match=r"has no shard-\*\.arrow"):
        data.train_dataloader()


def test_a_fit_looks_at_the_rows_held_out_and_a_validation_at_all_dev_sets(rows, tiny_tokenizer, tiny_task):
    held_out = TaskRows(rows.task, tiny_tokenizer, tiny_task, selection="holdout")
    data = TaskDataModule(held_out, LoaderSpec(batch_size=8))
    assert data.dev_names == ["holdout", "dev"]
    assert train(data, max_epochs=1).validations == [held_out.num_rows["holdout"]]
    assert len(TaskDataModule(held_out).val_dataloader()) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_a_streams_epoch_is_a_pass_too(stream, workers):
    first, second = (
        flat(batches) for batches in train(StreamDataModule(stream, LoaderSpec(8, num_workers=workers))).epochs
    )
    assert len(first) > 60
    assert first != second


@pytest.mark.parametrize("ahead", [0, 2])
def test_a_stream_ends_after_total_batches(stream, ahead):
    data = StreamDataModule(stream, LoaderSpec(batch_size=8, total_batches=5, ahead=ahead))
    module = train(data)
    assert [len(batches) for batches in module.epochs] == [5, 5]
    assert module.epochs[0] != module.epochs[1]
    positions = {}
    for batch in itertools.islice(data.train_dataloader(), 3):
        reader, *place = batch["position"].tolist()
        positions[reader] = place
    data.resume(3, positions)
    assert train(data, max_epochs=1).epochs == [module.epochs[0][3:]]


def test_a_streams_batch_divides_into_equal_parts(stream):
    with pytest.raises(InputError, match="batch_size=8 does not divide into 3 equal parts"):
        StreamDataModule(stream, LoaderSpec(batch_size=8, accumulate=3)).train_dataloader()
