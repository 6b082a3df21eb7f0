import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from bitkd.callbacks.checkpoints import BestCheckpoint, ResumeCheckpoint, latest_checkpoint
from bitkd.callbacks.stop import ValidateLastStep
from bitkd.stages.base import StudentModule
from bitkd.stages.finite import FiniteCheck, NonFiniteLossError
from bitkd.stages.spec import SCORE
from tests.stages.test_stages import classifier

NAN = torch.nan


def add(check, losses, finish=False):
    for batch, loss in enumerate(losses):
        check.add(torch.tensor(loss), ["hidden", "logits"], batch, batch // 2, torch.arange(batch, batch + 10))
    if finish:
        check.finish()


@pytest.mark.parametrize("delay", [None, 0, 1, 3, 100])
def test_the_first_bad_batch_is_named_however_late_it_is_found(delay):
    check = FiniteCheck(delay)
    good, bad = [1.0, 2.0], [1.0, NAN]
    with pytest.raises(
        NonFiniteLossError, match=r"term logits .* batch 2 \(step 1, rows \[2, 3, 4, 5, 6, 7, 8, 9\]…\)"
    ):
        add(check, [good, good, bad, [NAN, NAN], bad, good], finish=True)
    check.finish()  # told once


def test_a_delayed_loss_is_looked_at_after_that_many_batches():
    check = FiniteCheck(delay=2)
    add(check, [[1.0, 2.0], [NAN, 0.0]])
    assert check.latest is None
    add(check, [[3.0, 4.0]])
    assert check.latest == 3.0
    with pytest.raises(NonFiniteLossError, match=r"term hidden .* batch 1"):
        add(check, [[0.0, 0.0]])


def test_a_sum_too_large_for_32_bits_is_named_the_total():
    with pytest.raises(NonFiniteLossError, match="term total is not finite"):
        add(FiniteCheck(), [[3e38, 3e38]])


class Diverges(StudentModule):
    """Its loss is NaN at one batch."""

    bad_batch = 6

    def training_step(self, batch, batch_idx):
        self.is_bad = batch_idx == self.bad_batch
        return super().training_step(batch, batch_idx)

    def loss_terms(self, batch):
        value = self.student(input_ids=batch["input_ids"]).logits.square().mean()
        return {"label": value * (NAN if self.training and self.is_bad else 1.0)}


class Rows(pl.LightningDataModule):
    def __init__(self, steps):
        super().__init__()
        self.steps, self.start = steps, 0

    def resume(self, batch, positions):
        self.start = batch

    def train_dataloader(self):
        rows = [
            {"input_ids": torch.full((2, 4), step + 5), "index": torch.tensor([step])} for step in range(self.steps)
        ]
        return DataLoader(rows[self.start :], batch_size=None)

    def val_dataloader(self):
        return DataLoader([{"input_ids": torch.full((2, 4), 7)}], batch_size=None)


def fit(folder, delay, steps=12, accelerator="cpu", **settings):
    module = Diverges(classifier(layers=1), total_steps=steps)
    module.finite.delay = delay
    best, resume = BestCheckpoint(folder, SCORE), ResumeCheckpoint(folder, **settings)
    trainer = pl.Trainer(
        accelerator=accelerator,
        devices=1,
        max_steps=steps,
        max_epochs=1,
        min_epochs=0,
        val_check_interval=5,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ValidateLastStep(), best, resume],
    )
    trainer.fit(module, Rows(steps), ckpt_path=latest_checkpoint(folder), weights_only=True)


@pytest.mark.parametrize(
    "settings",
    [{"every_steps": 4}, {"every_steps": None}, {"every_steps": None, "steps": 8}],
    ids=["checkpoint", "validation", "end"],
)
def test_nothing_trained_after_a_bad_loss_is_kept(tmp_path, settings):
    for _ in range(2):  # the second fit goes on from the last checkpoint, and comes to the same batch
        with pytest.raises(NonFiniteLossError, match=r"term label is not finite at batch 6 \(step 6, rows \[6\]\)"):
            fit(tmp_path, delay=100, **settings)
        files = [*tmp_path.iterdir()]
        assert {file.name for file in files} <= {"step-000000004.ckpt", "best-000000000.ckpt"}
        for file in files:
            assert all(weight.isfinite().all() for weight in torch.load(file)["state_dict"].values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_bad_loss_on_a_gpu_is_named(tmp_path):
    with pytest.raises(NonFiniteLossError, match=r"term label is not finite at batch 6 \(step 6, rows \[6\]\)"):
        fit(tmp_path, None, accelerator="gpu")
