"""What the shortcuts of a training step do to MRPC's accuracy, and what they save: the same steps with and without each.

python experiments/speed/accuracy.py --glue GLUE --model MODEL [ARM…] [--seeds 1 2] [SETTING…]

GLUE holds MRPC/ in the official layout, MODEL is a pre-trained BERT. Each arm and seed is one run of pipeline/speed.yaml, all
with one teacher that is trained first: call it again to go on after an interruption, and with other arms to add them.
accuracy.csv is written anew from all runs in --runs; `make results` puts it into RESULTS.md. The arm `before` is for the
defaults of another version of bitkd, in a checkout of its own: --code CHECKOUT.
"""

import argparse
import csv
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from bitkd.store.artifacts import PREDICTIONS_FILE

HERE = Path(__file__).parent
FAST, BEFORE = "fast", "before"
UNCOMPILED, TEACHER, PADDED = (
    "trainer.compile=false",
    "trainer.keep_teacher_logits=never",
    "data.pad_to_max_length=true",
)
ARMS = {
    FAST: [UNCOMPILED],
    "teacher-in-every-step": [UNCOMPILED, TEACHER],
    "padded": [UNCOMPILED, PADDED],
    "compiled": ["trainer.compile=true"],
    "published": [UNCOMPILED, TEACHER, PADDED, "trainer.precision=32-true"],
    BEFORE: [],
}
"""Arm -> its settings. fast: everything but compiling, which changes the rounding of all that follows."""

SHARED = {"teacher-in-every-step"}
"""Arms whose Single-Stage KD is that of `fast`, taken from the store: their processor time tells nothing."""

HEADER = ["arm", "seed", "accuracy", "F1", "area under ROC", "predictions equal to those of fast",
          "processor time, of published"]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description="MRPC's accuracy with and without each shortcut.")
    parser.add_argument("--glue", type=Path, required=True, help="a folder with MRPC/ in the official layout")
    parser.add_argument("--model", required=True, help="a pre-trained BERT")
    parser.add_argument("--runs", type=Path, default=Path("runs/speed"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--code", type=Path, help="a checkout of another version, for the arm before")
    parser.add_argument("words", nargs="*", metavar="ARM|SETTING", help=f"{', '.join(ARMS)}; settings for all arms")
    options = parser.parse_args()
    settings = [word for word in options.words if "=" in word]
    arms = [word for word in options.words if "=" not in word] or [arm for arm in ARMS if arm != BEFORE]
    if unknown := set(arms) - ARMS.keys():
        parser.error(f"unknown arms {', '.join(sorted(unknown))}; there are {', '.join(ARMS)}")
    if (BEFORE in arms) != (options.code is not None) or (options.code and arms != [BEFORE]):
        parser.error(f"the arm {BEFORE} is run alone, and with --code")
    given = [f"data.dir={options.glue}", f"model.pretrained={options.model}", "train.batch_size=16", *settings]
    # Only the teacher's folder is shared: its fit is the same in all arms, whatever they change.
    teacher = train("teacher", [*given, UNCOMPILED, *stop_after_teacher()], options.runs, None)
    for arm in arms:
        for seed in options.seeds:
            own = [*given, *ARMS[arm], f"seed={seed}", f"stages.teacher.checkpoint={teacher / 'teacher'}"]
            train(f"{arm}-{seed}", own, options.runs, options.code)
    write_table(options.runs)
    return 0


def stop_after_teacher() -> list[str]:
    """Settings that leave of the students' stages as good as nothing."""
    return ["stages.single_binary.max_steps=1", "stages.stage2_binary.max_steps=1"]


def train(name: str, settings: list[str], runs: Path, code: Path | None) -> Path:
    """Run to the end; returns the run's folder. Processor seconds are added up over all calls beside it."""
    folder = runs.absolute() / "mrpc" / name
    note = folder.with_suffix(".json")
    if (folder / "stage2_binary").exists() and note.is_file() and json.loads(note.read_text())["done"]:
        print(f"{name}: done", flush=True)
        return folder
    command = [sys.executable, "-m", "bitkd", "run", f"pipeline={HERE / 'pipeline' / 'speed.yaml'}", "task=mrpc"]
    command += [f"run.dir={runs}", f"run.name={name}", *settings]
    root = (code or HERE.parents[1]).absolute()
    began = processor_seconds()
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(root)})
    spent = processor_seconds() - began
    before = json.loads(note.read_text())["processor_seconds"] if note.is_file() else 0.0
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps({"processor_seconds": before + spent, "done": done.returncode == 0}) + "\n")
    if done.returncode:
        sys.exit(done.returncode)
    return folder


def processor_seconds() -> float:
    """Of all processes that were started from here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def write_table(runs: Path) -> None:
    """accuracy.csv: all runs, and a mean for each arm of several seeds. The agreement of two seeds of fast shows what the seed
    alone changes."""
    found: dict[str, dict[int, Path]] = {}
    for folder in sorted((runs / "mrpc").iterdir()):
        arm, _, seed = folder.name.rpartition("-")
        if arm in ARMS and seed.isdigit() and (folder / "stage2_binary").exists():
            found.setdefault(arm, {})[int(seed)] = folder
    margins = {arm: {seed: read_margins(folder) for seed, folder in seeds.items()} for arm, seeds in found.items()}
    spent = {arm: statistics.mean(map(processor_time, seeds.values())) for arm, seeds in found.items()}
    rows = []
    for arm in (arm for arm in ARMS if arm in found):
        relative = f"{spent[arm] / spent['published']:.2f}" if "published" in spent and arm not in SHARED else "–"
        numbers = []
        for seed, folder in found[arm].items():
            margin, labels = margins[arm][seed]
            same = margins.get(FAST, {}).get(seed)
            equal = None if same is None or arm == FAST else agreement(margin, same[0])
            metrics = json.loads((folder / "stage2_binary" / "metrics.json").read_text())["dev"]
            values = [metrics["accuracy"], metrics["f1"], float(binary_auroc(margin, labels.long())), equal]
            numbers.append(values)
            rows.append([arm, seed, *map(shown, values), relative])
        if len(numbers) > 1:
            means = [None if None in column else statistics.mean(column) for column in zip(*numbers)]
            rows.append([arm, "mean", *map(shown, means), relative])
    seeds = list(margins.get(FAST, {}).values())
    if len(seeds) > 1:
        noise = statistics.mean(agreement(a[0], b[0]) for a, b in itertools.pairwise(seeds))
        rows.append([FAST, "of one seed and the next", "–", "–", "–", shown(noise), "–"])
    with open(HERE / "accuracy.csv", "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows([HEADER, *rows])


def read_margins(folder: Path) -> tuple[Tensor, Tensor]:
    """Of each dev row: logit of the second label less that of the first (rows,), and the label (rows,)."""
    kept = load_file(folder / "stage2_binary" / PREDICTIONS_FILE)
    return kept["dev.logits"].diff(dim=1).squeeze(1), kept["dev.labels"]


def agreement(mine: Tensor, other: Tensor) -> float:
    """Share of rows that get the same label."""
    return float(((mine > 0) == (other > 0)).float().mean())


def processor_time(folder: Path) -> float:
    """Of the whole program, its start and imports included."""
    return float(json.loads(folder.with_suffix(".json").read_text())["processor_seconds"])


def shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    sys.exit(main())
