from contextlib import nullcontext
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from bitkd.callbacks.checkpoints import BestCheckpoint, ResumeCheckpoint, latest_checkpoint
from bitkd.callbacks.random_states import RandomStates
from bitkd.callbacks.seconds import TrainingSeconds
from bitkd.callbacks.stop import StopRequest, ValidateLastStep
from bitkd.errors import InputError, StoppedError
from bitkd.stages.base import SCORE


class Rows(pl.LightningDataModule):
    """Batches that can start anywhere, as bitkd.data.sampler's do."""

    def __init__(self, total):
        super().__init__()
        self.total, self.start_batch = total, 0
        self.rows = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))

    def resume(self, batch, positions):
        self.start_batch = batch

    def train_dataloader(self):
        module = self

        class Sampler:
            def __len__(self):
                return module.total

            def __iter__(self):
                for i in range(module.start_batch, module.total):
                    yield [(3 * i + j) % 40 for j in range(4)]

        return DataLoader(self.rows, batch_sampler=Sampler(), generator=torch.Generator())

    def val_dataloader(self):
        return DataLoader(self.rows[:8], batch_size=4)


class Noisy(pl.LightningModule):
    """Dropout, momentum and a schedule: everything that a careless resumption gets wrong."""

    def __init__(self, stop_at=None):
        super().__init__()
        torch.manual_seed(5)
        self.net = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 1))
        self.stop_at = stop_at
        self.scores = []

    def training_step(self, batch, batch_idx):
        if batch_idx == self.stop_at:
            raise RuntimeError("killed")
        return self.net(batch).square().mean() + self.net(batch).mean()

    def validation_step(self, batch, batch_idx):
        self.log(SCORE, self.net(batch).mean())

    def on_validation_epoch_end(self):
        self.scores.append(self.trainer.global_step)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, 12), "interval": "step"}]


def fit(folder, stop_at=None, steps=12, accumulate=1, every_steps=1, interval=4, stop_after=None, counts_start=False):
    folder.mkdir(exist_ok=True)
    module, data = Noisy(stop_at), Rows(steps * accumulate)
    best, resume = BestCheckpoint(folder, SCORE, counts_start), ResumeCheckpoint(folder, every_steps=every_steps)
    stop = StopRequest(lambda: module.global_step == stop_after, resume.save)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=1,
        min_epochs=0,
        accumulate_grad_batches=accumulate,
        val_check_interval=interval * accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[RandomStates(1), TrainingSeconds(), ValidateLastStep(), best, resume, stop],
    )
    checkpoint = latest_checkpoint(folder)
    ending = nullcontext()
    if stop_at is not None:
        ending = pytest.raises(RuntimeError, match="killed")
    if stop_after is not None:
        ending = pytest.raises(StoppedError, match="asked to stop")
    with ending:
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    return module, best


def best_weights(folder, step):
    return torch.load(folder / f"best-{step:09d}.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("stop_at", [1, 3, 4, 5, 8, 11])
def test_resumed_equals_uninterrupted(tmp_path, stop_at, accumulate):
    whole, whole_best = fit(tmp_path / "whole", accumulate=accumulate)
    fit(tmp_path / "interrupted", stop_at=stop_at * accumulate, accumulate=accumulate)
    resumed, resumed_best = fit(tmp_path / "interrupted", accumulate=accumulate)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()))
    assert (whole_best.score, whole_best.step) == (resumed_best.score, resumed_best.step)
    first, second = (best_weights(tmp_path / name, whole_best.step) for name in ("whole", "interrupted"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("step", [3, 4, 12])
def test_a_requested_stop_is_after_a_whole_step_and_saves_it(tmp_path, step, accumulate):
    whole, whole_best = fit(tmp_path / "whole", accumulate=accumulate)
    stopped, _ = fit(tmp_path / "interrupted", every_steps=None, accumulate=accumulate, stop_after=step)
    assert [file.name for file in tmp_path.glob("interrupted/step-*.ckpt")] == [f"step-{step:09d}.ckpt"]
    assert stopped.scores == [done for done in (4, 8, 12) if done <= step]  # its validation is part of the step
    resumed, resumed_best = fit(tmp_path / "interrupted", every_steps=None, accumulate=accumulate)
    assert stopped.scores + resumed.scores == [4, 8, 12]
    assert (whole_best.curve, whole_best.step) == (resumed_best.curve, resumed_best.step)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()))


def test_a_data_module_that_cannot_resume_is_refused(tmp_path):
    trainer = pl.Trainer(accelerator="cpu", max_steps=1, logger=False, callbacks=[ResumeCheckpoint(tmp_path)])
    with pytest.raises(InputError, match=r"without a data module that has resume\(batch, positions\)"):
        trainer.fit(Noisy(), DataLoader(torch.randn(4, 4)))


@pytest.mark.parametrize("every_steps", [3, 5, 7])
def test_checkpoints_at_any_step_resume_alike(tmp_path, every_steps):
    whole, _ = fit(tmp_path / "whole", every_steps=every_steps, interval=5)
    fit(tmp_path / "interrupted", stop_at=9, every_steps=every_steps, interval=5)
    resumed, _ = fit(tmp_path / "interrupted", every_steps=every_steps, interval=5)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()))


def test_a_finished_fit_resumes_to_itself(tmp_path):
    whole, _ = fit(tmp_path)
    again, best = fit(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values()))
    assert again.scores == []
    assert best.score is not None


def test_the_last_step_is_validated_however_the_interval_falls(tmp_path):
    module, _ = fit(tmp_path, interval=5)
    assert module.scores == [5, 10, 12]


def test_a_moved_folder_resumes_alike(tmp_path):
    whole, whole_best = fit(tmp_path / "whole")
    fit(tmp_path / "before", stop_at=9)
    (tmp_path / "before").rename(tmp_path / "after")
    resumed, best = fit(tmp_path / "after")
    assert best.score == whole_best.score
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()))


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path):
    fit(tmp_path, stop_at=9)
    older, newer = sorted(tmp_path.glob("step-*.ckpt"))
    newer.write_bytes(newer.read_bytes()[:200])
    assert latest_checkpoint(tmp_path) == older
    older.write_bytes(b"")
    assert latest_checkpoint(tmp_path) is None


def test_two_checkpoints_are_kept_and_seconds_add_up(tmp_path):
    fit(tmp_path, stop_at=9)
    files = sorted(tmp_path.glob("step-*.ckpt"))
    assert [file.name for file in files] == ["step-000000008.ckpt", "step-000000009.ckpt"]
    states = torch.load(files[-1], weights_only=True)["callbacks"]
    assert sum(states["TrainingSeconds"]["spent"].values()) > 0


def test_time_is_counted_to_the_end_though_nothing_is_saved(tmp_path):
    module, _ = fit(tmp_path, every_steps=None)
    clock = next(callback for callback in module.trainer.callbacks if isinstance(callback, TrainingSeconds))
    assert clock.seconds > 0
    assert not [*tmp_path.glob("step-*.ckpt")]


@pytest.mark.parametrize("stop_at", [None, 8])
def test_training_validations_and_checkpoints_are_timed_apart_over_resumptions(tmp_path, monkeypatch, stop_at):
    now = 0.0

    def passes(seconds):
        nonlocal now
        now += seconds

    step, validation = Noisy.training_step, Noisy.validation_step
    monkeypatch.setattr("bitkd.callbacks.seconds.time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(Noisy, "training_step", lambda *args: [step(*args), passes(1)][0])
    monkeypatch.setattr(Noisy, "validation_step", lambda *args: [validation(*args), passes(10)][0])
    monkeypatch.setattr(ResumeCheckpoint, "_read_positions", lambda self: passes(100))
    if stop_at is not None:  # the steps since the last checkpoint are made again, and count once
        fit(tmp_path, stop_at=stop_at, every_steps=5)
    module, _ = fit(tmp_path, every_steps=5)
    clock = next(callback for callback in module.trainer.callbacks if isinstance(callback, TrainingSeconds))
    assert clock.facts["validation_seconds"] == 3 * 2 * 10
    saving = 200 if stop_at is None else 100  # a checkpoint cannot hold how long it took to write
    assert clock.facts["saving_seconds"] == saving
    assert clock.facts["seconds"] == 12 + 60 + saving
    clock.load_state_dict({"seconds": 5.0})  # as versions wrote it that measured no parts
    assert (clock.facts["seconds"], clock.facts["validation_seconds"]) == (5.0, None)


def test_a_best_that_a_checkpoint_names_outlives_a_better_one(tmp_path, monkeypatch):
    """Where a repeated step ends otherwise than it did (on a GPU), the weights of the lost way must not be handed on."""
    scores = iter([0.5, 0.9])
    monkeypatch.setattr(Noisy, "validation_step", lambda self, *_: self.log(SCORE, torch.tensor(next(scores))))
    monkeypatch.setattr(Rows, "val_dataloader", lambda self: DataLoader(self.rows[:4], batch_size=4))
    fit(tmp_path, stop_at=11, every_steps=5)  # saved at step 5 with the best of step 4, at step 10 with that of step 8
    assert [file.name for file in sorted(tmp_path.glob("best-*"))] == ["best-000000004.ckpt", "best-000000008.ckpt"]
    (tmp_path / "step-000000010.ckpt").unlink()
    scores = iter([0.4, 0.3])
    module, best = fit(tmp_path, every_steps=5)
    assert (best.score, best.step) == (0.5, 4)
    best.load_into(module)
    assert all(torch.equal(weight, best_weights(tmp_path, 4)[name]) for name, weight in module.state_dict().items())


def test_the_best_is_written_only_with_a_checkpoint_that_refers_to_it(tmp_path):
    whole, best = fit(tmp_path / "none", every_steps=None)
    assert not [*(tmp_path / "none").iterdir()]
    best.load_into(whole)
    fit(tmp_path / "each", every_steps=1)
    saved = best_weights(tmp_path / "each", best.step)
    assert all(torch.equal(weight, saved[name]) for name, weight in whole.state_dict().items())


def same(first, second):
    return all(torch.equal(weight, second[name]) for name, weight in first.items())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_start_is_one_more_validation_and_changes_nothing_else(tmp_path, accumulate):
    """Also with dropout, whose random stream goes on as if nothing had been validated."""
    without, plain = fit(tmp_path / "without", accumulate=accumulate)
    module, best = fit(tmp_path / "with", accumulate=accumulate, counts_start=True)
    assert module.scores == [0, *without.scores]
    assert best.curve[1:] == plain.curve
    assert same(module.state_dict(), without.state_dict())


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("stop_at", [1, 3, 9])
def test_a_resumed_fit_has_the_score_of_its_start_and_validates_it_once(tmp_path, monkeypatch, stop_at, sign):
    monkeypatch.setattr(Noisy, "validation_step", lambda self, batch, _: self.log(SCORE, sign * self.net(batch).mean()))
    whole, whole_best = fit(tmp_path / "whole", counts_start=True)
    cut, _ = fit(tmp_path / "cut", stop_at=stop_at, counts_start=True)
    resumed, best = fit(tmp_path / "cut", counts_start=True)
    assert [step for step, _ in best.curve] == cut.scores + resumed.scores == [0, 4, 8, 12]
    assert (best.curve, best.step) == (whole_best.curve, whole_best.step)
    assert best.step == (0 if sign > 0 else 12)  # the loss makes the mean smaller
    assert same(whole.state_dict(), resumed.state_dict())
    best.load_into(resumed)
    whole_best.load_into(whole)
    assert same(whole.state_dict(), resumed.state_dict())
    assert (best.step > 0) or same(Noisy().state_dict(), resumed.state_dict())


def test_a_later_score_must_be_larger_than_that_of_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(Noisy, "validation_step", lambda self, *_: self.log(SCORE, torch.tensor(0.5)))
    module, best = fit(tmp_path, counts_start=True)
    assert (best.step, best.curve) == (0, [[step, 0.5] for step in (0, 4, 8, 12)])
    best.load_into(module)
    assert same(Noisy().state_dict(), module.state_dict())
