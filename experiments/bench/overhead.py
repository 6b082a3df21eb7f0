"""What bitkd costs beside the training itself (`make bench SUITE=overhead`): checkpoints, a finished graph, a plan.

Models have the shape of MiniLM-L6 and random weights; the finished graph is the demo's multistage, at two steps a stage.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as bitkd.cli does
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import lightning.pytorch as pl
import torch
from figures import Result, report
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification

from bitkd.callbacks.checkpoints import ResumeCheckpoint
from bitkd.config.load import load_config
from bitkd.pipeline.runner import run
from bitkd.processes.libraries import quieten
from bitkd.stages.finetune import FineTune

MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
STEPS, SAVE_EVERY = 24, 4
ROWS, TOKENS = 32, 48
MINUTES = 5
REPEATS = 5


class Timed(ResumeCheckpoint):
    """Notes how long each save took."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.saves: list[float] = []

    def save(self, trainer: Any) -> None:
        began = time.perf_counter()
        super().save(trainer)
        self.saves.append(time.perf_counter() - began)


class Batches(pl.LightningDataModule):
    """Random tokens."""

    def resume(self, batch: int, positions: object) -> None:
        """Nothing: the fits here begin anew."""

    def train_dataloader(self) -> DataLoader:
        rows = torch.randint(1000, 30000, (STEPS, ROWS, TOKENS))
        batches = [{"input_ids": row, "labels": row[:, 0] % 2} for row in rows]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def checkpoints() -> Iterator[Result]:
    """Seconds of a save against the five minutes between two."""
    with tempfile.TemporaryDirectory() as folder:
        resume = Timed(Path(folder), every_minutes=1e9, every_steps=SAVE_EVERY)
        settings: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = pl.Trainer(accelerator="cpu", max_steps=STEPS, max_epochs=1, callbacks=[resume], **settings)
        trainer.fit(FineTune(BertForSequenceClassification(BertConfig(**MINILM)), total_steps=STEPS), Batches())
    save = statistics.median(resume.saves)
    yield f"a save every {MINUTES} minutes", 100 * save / (60 * MINUTES + save), "% of training time", ("<", 1)


def graph() -> Iterator[Result]:
    """`run` where every stage is done (plan, fingerprints, checksums, record), and `plan` from a cold start."""
    with tempfile.TemporaryDirectory() as runs:
        settings = ["task=demo", "pipeline=multistage", f"run.dir={runs}", "train.max_steps=2"]
        settings.append("trainer.accelerator=cpu")
        silent = type("Silent", (), {"print": staticmethod(lambda text: None)})
        run(load_config(settings), silent)
        finished = median_seconds(lambda: run(load_config(settings), silent))
        yield "a finished graph, imports not counted", finished, "s", ("<", 2)

        def plan(*more: str) -> None:
            command = [sys.executable, "-m", "bitkd", "plan", *settings, *more]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

        plan()
        yield "bitkd plan, of settings as before", median_seconds(plan), "s", ("<", 3)
        seeds = iter(range(REPEATS))
        yield "bitkd plan, of new settings", median_seconds(lambda: plan(f"seed={next(seeds)}")), "s", ("<", 3)


def median_seconds(work: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> int:
    quieten()
    return report("overhead", (checkpoints, graph))


if __name__ == "__main__":
    sys.exit(main())
