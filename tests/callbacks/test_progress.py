import io

import lightning.pytorch as pl
import pytest
from rich.console import Console

from bitkd.callbacks.progress import Progress
from tests.callbacks.test_checkpoints import Noisy, Rows
from tests.conftest import Lines


def terminal(width):
    return Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)


def line(progress, width):
    console = terminal(width)
    console.print(progress)
    return console.file.getvalue()


def at_step_120(name="stage 7 of 8: stage1_binary", score="accuracy"):
    progress = Progress(None, name, score, live=True)
    progress.step, progress.total, progress.loss, progress.score = 120, 400, 0.5, 0.8125
    return progress


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 200])
@pytest.mark.parametrize("name", ["stage 7 of 8: stage1_binary", f"stage 10 of 12: {'long_' * 30}"])
def test_it_is_one_line_of_any_width(width, name):
    text = line(at_step_120(name), width)
    assert text.count("\n") == 1
    assert len(text.rstrip()) <= width
    assert "120/400" in text
    assert "…" not in text


def test_80_columns_hold_stage_step_loss_and_score():
    text = line(at_step_120(), 80)
    for part in ("stage 7 of 8: stage1_binary", "120/400", "loss 0.5000", "dev accuracy 0.8125"):
        assert part in text
    assert "━" in line(at_step_120(), 120)


def fit(progress, steps=12):
    """A fit of a few steps, watched by `progress`."""
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=1,
        min_epochs=0,
        val_check_interval=4,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[progress],
    )
    with progress.shown():
        trainer.fit(Noisy(), Rows(steps))
    return trainer


def test_a_loss_is_shown_as_a_loss():
    progress = Progress(Lines(), "stage 1 of 1: general", None, live=False)
    trainer = fit(progress)
    shown = float(trainer.callback_metrics["dev/score"])
    assert progress.score == -shown
    assert progress.step == progress.total == 12
    assert "dev loss" in line(progress, 120)


def test_without_a_terminal_it_prints_from_time_to_time(monkeypatch):
    quiet, talking = Lines(), Lines()
    fit(Progress(quiet, "stage 1 of 1: x", "accuracy", live=False))
    assert quiet.lines == []
    monkeypatch.setattr("bitkd.callbacks.progress.LINE_SECONDS", 0.0)
    fit(Progress(talking, "stage 1 of 1: x", "accuracy", live=False))
    assert len(talking.lines) == 12
    assert all(text.startswith("stage 1 of 1: x, step ") and "ETA " in text for text in talking.lines)


def test_the_line_is_gone_when_the_fit_ends():
    console = terminal(80)
    fit(Progress(console, "stage 1 of 1: x", "accuracy", live=True))
    text = console.file.getvalue()
    assert "stage 1 of 1: x" in text
    assert text.endswith("\x1b[1A\x1b[2K")  # up to the line, and erased
