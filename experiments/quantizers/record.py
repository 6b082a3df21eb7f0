"""Add the finished cells of a sweep to the study's record, on the commit and the machine that trained them.

python experiments/quantizers/record.py SWEEP RUNS [FAILED...]    (SWEEP: scales, methods or bits; RUNS: the run.dir)

A cell is a task and a seed. It counts if all its trials are finished, but for arms that are named as FAILED by the study's rule,
and once: a cell that is recorded stays as it is. For each task, SWEEP/TASK/comparison.json gets the cell's runs, and the size of
one exported student of each arm; cells.csv gets a row.
"""

import csv
import os
import subprocess
import sys
from datetime import date
from pathlib import Path

from run import parameters_of

from bitkd.compare.arms import make_arms
from bitkd.compare.exported import processor_name
from bitkd.compare.load import artifact_folders, load_run, read_runs
from bitkd.compare.measure import measure_students
from bitkd.compare.runs import RECORD_FILE
from bitkd.errors import InputError
from bitkd.report.write import write_report

HERE = Path(__file__).parent
CELLS = HERE / "cells.csv"


def pipelines(sweep: str) -> list[str]:
    """The names of a sweep's arms, the reference first."""
    return [Path(value).stem for value in parameters_of(sweep)["pipeline"]["values"]]


def finished_cells(sweep: str, runs: Path) -> dict[tuple[str, int], dict[str, Path]]:
    """(Task, seed) -> arm -> run folder, of finished runs."""
    found: dict[tuple[str, int], dict[str, Path]] = {}
    for manifest in sorted(runs.glob(f"*/{sweep}-*/manifest.json")):
        try:
            run = load_run(manifest.parent, to_compare=True)
        except InputError as error:
            print(f"left out: {error}")
            continue
        cell = found.setdefault((run.task, run.seed), {})
        if run.pipeline in cell:
            raise InputError(
                f"{cell[run.pipeline]} and {manifest.parent} are one arm of one cell; delete the one of other settings"
            )
        cell[run.pipeline] = manifest.parent
    return found


def commit() -> str:
    """The commit of this checkout, or the environment's COMMIT where a copy of it has no git. Raises InputError if a file of it
    was changed.
    """
    if given := os.environ.get("COMMIT"):
        return given
    git = ["git", "-C", str(HERE)]
    if changed := subprocess.check_output([*git, "status", "--porcelain", "--", ":/bitkd", ":/conf"], text=True):
        raise InputError(f"the code is no commit:\n{changed}commit it, and train the cell again")
    return subprocess.check_output([*git, "rev-parse", "--short", "HEAD"], text=True).strip()


def main(sweep: str, runs: Path, failed: list[str]) -> None:
    code = commit()
    for (task, seed), folders in sorted(finished_cells(sweep, runs).items()):
        record = HERE / sweep / task / RECORD_FILE
        before = read_runs(record) if record.is_file() else []
        arms = [arm for arm in pipelines(sweep) if arm in folders]
        missing = [arm for arm in pipelines(sweep) if arm not in folders]
        if unfinished := [arm for arm in missing if arm not in failed]:
            print(f"{task}, seed {seed}: not finished ({', '.join(unfinished)})")
            continue
        if any(run.seed == seed for run in before):
            print(f"{task}, seed {seed}: recorded before, and stays as it is")
            continue
        new = [load_run(folders[arm], to_compare=True) for arm in arms]
        keys = {key: folder for arm in arms for key, folder in artifact_folders(folders[arm]).items()}
        measured = measure_students(make_arms([*before, *new]), keys, latency=False, tell=print)
        write_report([run for arm in measured for run in arm.runs], record.parent)
        with open(CELLS, "a", newline="", encoding="utf-8") as stream:
            row = [sweep, task, seed, len(arms), ", ".join(missing), code, processor_name(), date.today().isoformat()]
            csv.writer(stream, lineterminator="\n").writerow(row)
        print(f"{task}, seed {seed}: recorded")


if __name__ == "__main__":
    try:
        main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
    except InputError as error:
        sys.exit(str(error))
