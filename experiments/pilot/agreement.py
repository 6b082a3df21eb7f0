"""How near the logits of 1-bit and 2-bit students come to the teacher's on the dev rows of a task with two labels, as CSV.

python experiments/pilot/agreement.py RUN... > agreement.csv

A student whose accuracy is the majority's may have learned nothing, or to rank rows without yet putting the threshold right: the
area under the ROC curve (0.5: nothing) and the correlation with the teacher tell the two apart.
"""

import csv
import sys
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc
from torchmetrics.functional.regression import pearson_corrcoef

from bitkd.store.artifacts import read_artifact
from bitkd.store.record import RunRecord


def margins(stage: Path) -> tuple[Tensor, Tensor]:
    """Logit of the second label less that of the first (rows,), and the labels (rows,)."""
    said = load_file(stage / "predictions.safetensors")
    return said["dev.logits"].diff(dim=1).squeeze(1), said["dev.labels"]


def main(runs: list[str]) -> None:
    rows = {}  # by artifact: runs share some
    for run in map(Path, runs):
        record = RunRecord.read(run)
        teacher, labels = margins(run / "teacher")
        for stage in record.stages:
            made = read_artifact(run / stage).stage
            if made["size"]["precision"] == "W32A32" or made["kind"] == "split":  # a split is not trained
                continue
            student, _ = margins(run / stage)
            values = (
                ((student > 0) == labels).float().mean(),
                (student > 0).float().mean(),
                binary_auroc(student, labels.long()),
                pearson_corrcoef(student, teacher),
            )
            rate = made["settings"]["lr"] or record.info["settings"]["train.lr"]
            told = [
                record.info["task"],
                record.info["pipeline"],
                record.info["seed"],
                stage,
                made["size"]["precision"],
                rate,
            ]
            rows[record.stages[stage]] = [*map(str, told), *(f"{value:.4f}" for value in values)]
    header = ["task", "arm", "seed", "stage", "bits", "lr", "accuracy", "rows called positive", "area under ROC",
              "correlation with the teacher"]  # fmt: skip
    csv.writer(sys.stdout, lineterminator="\n").writerows([header, *sorted(rows.values())])


if __name__ == "__main__":
    main(sys.argv[1:])
