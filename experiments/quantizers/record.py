"""Add the finished cells of a sweep to the study's record, on the commit and the machine that trained them.

A cell is a task and a seed. It counts if all its trials are finished, on one commit and one machine, but for those that are
named as FAILED by the study's rule (such as sst2/bits-a1-2), and once: a cell that is recorded stays as it is. For each
task, SWEEP/TASK/comparison.json gets the cell's runs, and the size of one exported student of each arm; cells.csv gets a
row, in which arms whose students learned nothing are failed too.
"""

import argparse
import csv
import json
import sys
from datetime import date
from pathlib import Path

import subln
from run import LOGS, SUBLN, SWEEPS, parameters_of

from bitkd.compare.arms import make_arms
from bitkd.compare.checks import learned_nothing
from bitkd.compare.load import artifact_folders, load_run, read_runs
from bitkd.compare.measure import measure_students
from bitkd.compare.record_file import RECORD_FILE
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


def check_settings(sweep: str, folder: Path) -> None:
    """Raise InputError if a run has other settings than its sweep gives it."""
    found = load_run(folder, to_compare=True).settings
    for name, entry in parameters_of(sweep).items():
        if "value" in entry and found.get(name, entry["value"]) != entry["value"]:
            raise InputError(f"{folder} has {name}={found[name]}, not {entry['value']} as {sweep}.yaml; run it again")


def origin_of(sweep: str, task: str, seed: int, arms: list[str]) -> tuple[str, str]:
    """The commit and the processor that a cell was trained on. Raises InputError if there are several."""
    files = [LOGS / f"{task}-{sweep}-{arm}-{seed}.json" for arm in arms]
    found = {
        tuple(json.loads(file.read_text(encoding="utf-8"))[key] for key in ("commit", "processor")) for file in files
    }
    if len(found) != 1:
        raise InputError(f"{task}, seed {seed}: trained on {sorted(found)}; a cell is of one commit and one machine")
    commit, processor = found.pop()
    return commit, processor


def recorded() -> set[tuple[str, str, int]]:
    """Sweep, task and seed of the cells that are recorded."""
    with open(CELLS, newline="", encoding="utf-8") as stream:
        return {(row["sweep"], row["task"], int(row["seed"])) for row in csv.DictReader(stream)}


def main(sweep: str, runs: Path, failed: list[str]) -> None:
    subln.register()
    if not (cells := finished_cells(sweep, runs)):
        raise InputError(f"{runs} has no finished run of {sweep}; name the run.dir that run.py was given")
    for (task, seed), folders in sorted(cells.items()):
        if (sweep, task, seed) in recorded():
            print(f"{task}, seed {seed}: recorded before, and stays as it is")
            continue
        arms = [arm for arm in pipelines(sweep) if arm in folders]
        missing = [arm for arm in pipelines(sweep) if arm not in folders]
        if unfinished := [arm for arm in missing if f"{task}/{sweep}-{arm}-{seed}" not in failed]:
            print(f"{task}, seed {seed}: not finished ({', '.join(unfinished)})")
            continue
        for arm in arms:
            check_settings(sweep, folders[arm])
        origin = origin_of(sweep, task, seed, arms)
        record = HERE / sweep / task / RECORD_FILE
        before = [run for run in read_runs(record) if run.seed != seed] if record.is_file() else []
        new = [load_run(folders[arm], to_compare=True) for arm in arms]
        exports = [arm for arm in arms if arm != SUBLN]  # a packed student would leave its norms out
        keys = {key: folder for arm in exports for key, folder in artifact_folders(folders[arm]).items()}
        measured = measure_students(make_arms([*before, *new]), keys, latency=False, tell=print)
        write_report([run for arm in measured for run in arm.runs], record.parent)
        with open(CELLS, "a", newline="", encoding="utf-8") as stream:
            failures = [*missing, *(run.pipeline for run in new if learned_nothing(run, run.final_predictions))]
            row = [sweep, task, seed, len(arms), ", ".join(failures), *origin, date.today().isoformat()]
            csv.writer(stream, lineterminator="\n").writerow(row)
        print(f"{task}, seed {seed}: recorded")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", choices=SWEEPS)
    parser.add_argument("runs", type=Path, help="the run.dir")
    parser.add_argument("failed", nargs="*", help="trials without a student, such as sst2/bits-a1-2")
    arguments = parser.parse_args()
    try:
        main(arguments.sweep, arguments.runs, arguments.failed)
    except InputError as error:
        sys.exit(str(error))
