"""How close the logits of students come to the teacher's on the dev rows of one task with two labels, as CSV.

python experiments/pilot/agreement.py RUN... > agreement.csv

A student whose accuracy is the majority's may have learned nothing, or may rank rows well with the threshold at a wrong place:
the area under the ROC curve (0.5: nothing learned) and the correlation with the teacher show which.
"""

import csv
import sys
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc
from torchmetrics.functional.regression import pearson_corrcoef

from bitkd.stages.kinds import kind_of
from bitkd.store.artifacts import PREDICTIONS_FILE, read_artifact
from bitkd.store.run_folder import RunFolder


def margins(stage: Path) -> tuple[Tensor, Tensor]:
    """Logit of the second label less that of the first (rows,), and the labels (rows,)."""
    found = load_file(stage / PREDICTIONS_FILE)
    return found["dev.logits"].diff(dim=1).squeeze(1), found["dev.labels"]


def agreement(run: Path, stage: str) -> list[str]:
    """Accuracy, share of rows called positive, area under ROC, correlation with the teacher."""
    student, labels = margins(run / stage)
    values = (
        ((student > 0) == labels).float().mean(),
        (student > 0).float().mean(),
        binary_auroc(student, labels.long()),
        pearson_corrcoef(student, margins(run / "teacher")[0]),
    )
    return [f"{value:.4f}" for value in values]


def main(runs: list[str]) -> None:
    arms: dict[str, list[str]] = {}  # by artifact: runs share some
    rows: dict[str, list[object]] = {}
    for run in map(Path, runs):
        manifest = RunFolder.read(run).manifest
        assert manifest
        for stage, key in manifest.artifacts.items():
            made = read_artifact(run / stage).stage
            kind = kind_of(made.kind)
            if not kind.distils or not kind.keeps_head or made.size is None:  # the teacher, no training, no head, rows
                continue
            if manifest.pipeline not in arms.setdefault(key, []):
                arms[key].append(manifest.pipeline)
            train = made.settings["train"]
            settings = [stage, made.size.precision, made.steps, train["batch_size"], train["lr"]]
            rows[key] = [manifest.seed, *settings, *agreement(run, stage)]
    header = ["arms", "seed", "stage", "bits", "steps", "batch", "lr", "accuracy", "share called positive",
              "area under ROC", "correlation with the teacher"]  # fmt: skip
    csv.writer(sys.stdout, lineterminator="\n").writerows(
        [header, *sorted([", ".join(sorted(arms[key])), *row] for key, row in rows.items())]
    )


if __name__ == "__main__":
    main(sys.argv[1:])
