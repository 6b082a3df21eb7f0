"""What bitkd costs beside the training itself (`make bench SUITE=overhead`): checkpoints, a finished graph, a plan.

Models have the shape of MiniLM-L6 and random weights; the finished graph is the demo's multistage, at two steps a stage.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as bitkd.cli does
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification

from bitkd.callbacks.checkpoints import ResumeCheckpoint
from bitkd.commands.output import quieten
from bitkd.config.load import load_config
from bitkd.pipeline.runner import run
from bitkd.stages.finetune import FineTune

MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
STEPS, SAVE_EVERY = 24, 4
ROWS, TOKENS = 32, 48
MINUTES = 5
REPEATS = 5


class Timed(ResumeCheckpoint):
    """Notes when each step ended, and how long each save took."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.saves: list[float] = []
        self.steps: list[float] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._began = time.perf_counter()

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.steps.append(time.perf_counter() - self._began)
        super().on_train_batch_end(*arguments)

    def _save(self, trainer: Any) -> None:
        began = time.perf_counter()
        super()._save(trainer)
        self.saves.append(time.perf_counter() - began)


class Batches(pl.LightningDataModule):
    """Random tokens."""

    start_batch = 0

    def train_dataloader(self) -> DataLoader:
        rows = torch.randint(1000, 30000, (STEPS, ROWS, TOKENS))
        batches = [{"input_ids": row, "labels": row[:, 0] % 2} for row in rows]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def checkpoints(folder: Path) -> dict[str, float]:
    """Seconds of a save against the five minutes between two."""
    resume = Timed(folder, seed=0, every_minutes=1e9, every_steps=SAVE_EVERY)
    settings: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", max_steps=STEPS, max_epochs=1, callbacks=[resume], **settings)
    trainer.fit(FineTune(BertForSequenceClassification(BertConfig(**MINILM)), total_steps=STEPS), Batches())
    save, step = statistics.median(resume.saves), statistics.median(resume.steps)
    return {"save_seconds": save, "save_over_step": save / step, "share_of_training": save / (60 * MINUTES + save)}


def finished_graph(runs: Path) -> dict[str, float]:
    """Seconds of `run` where every stage is done: plan, fingerprints, checksums, record."""
    settings = ["task=demo", "pipeline=multistage", f"run.dir={runs}", "train.max_steps=2", "trainer.accelerator=cpu"]
    silent = type("Silent", (), {"print": staticmethod(lambda text: None)})
    run(load_config(settings), silent)
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        run(load_config(settings), silent)
        times.append(time.perf_counter() - began)
    command = [sys.executable, "-m", "bitkd", "plan", *settings]
    cold = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        cold.append(time.perf_counter() - began)
    began = time.perf_counter()
    subprocess.run([*command, "train.lr=1e-3"], check=True, capture_output=True)
    other = time.perf_counter() - began
    names = ("finished_graph_seconds", "plan_seconds", "new_plan_seconds")
    return dict(zip(names, (statistics.median(times), statistics.median(cold), other)))


def main() -> int:
    quieten()
    with tempfile.TemporaryDirectory() as folder:
        found = checkpoints(Path(folder) / "work") | finished_graph(Path(folder) / "runs")
    for name, value in found.items():
        print(f"{name}: {value:.4g}")
    target = Path("build/bench")
    target.mkdir(parents=True, exist_ok=True)
    (target / "overhead.json").write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
