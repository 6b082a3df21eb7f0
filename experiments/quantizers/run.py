"""The trials of one sweep, several processes side by side of one thread each.

python experiments/quantizers/run.py SWEEP SETTING... [--cells 1 3] [--processes 2] [--failed sst2/bits-a1-2]

SWEEP is scales, methods, bits, or subln: the settings of methods with a kind of stage of the study's own, which no sweep file can
name. Cells are numbered: 1: sst2, seed 1; 2: sick, seed 1; 3: sst2, seed 2; 4: sick, seed 2. All arms of a cell share its
teacher, and a process that needs a teacher which another one trains waits for it: take as many cells as processes, or more. Call
it again to go on after an interruption: what is finished is skipped, and so are trials that are named as failed by the study's
rule, each by --failed. Each trial has a log in build/quantizers, and a file that says on which code and processor (a GPU if
there is one) it began; elsewhere it is not continued. `bitkd sweep` runs the same files; this names the trials by their arms, and
does not need wandb's packages.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import yaml

from bitkd.compare.exported import processor_name
from bitkd.errors import InputError

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
LOGS = ROOT / "build" / "quantizers"
SUBLN = "subln"
CELLS = [1, 2, 3, 4]
SWEEPS = ("scales", "methods", "bits", SUBLN)


def parameters_of(sweep: str) -> dict[str, dict[str, Any]]:
    """The parameters of a sweep's file; of `subln`, those of methods.yaml with other arms."""
    file = HERE / f"{'methods' if sweep == SUBLN else sweep}.yaml"
    found: dict[str, dict[str, Any]] = yaml.safe_load(file.read_text(encoding="utf-8"))["parameters"]
    if sweep == SUBLN:
        found["pipeline"] = {"values": [f"experiments/quantizers/pipeline/{arm}.yaml" for arm in ("base", SUBLN)]}
    return found


def trials(sweep: str, cells: list[int]) -> list[tuple[str, str, list[str]]]:
    """Task, name and settings of each trial; those of the first arm come first."""
    parameters = parameters_of(sweep)
    fixed = [f"{key}={_text(entry['value'])}" for key, entry in parameters.items() if "value" in entry]
    arms, tasks, seeds = (parameters[key]["values"] for key in ("pipeline", "task", "seed"))
    chosen = [cell for number, cell in enumerate(itertools.product(seeds, tasks), start=1) if number in cells]
    return [
        (
            Path(task).stem,
            f"{sweep}-{Path(arm).stem}-{seed}",
            [f"pipeline={arm}", f"task={task}", f"seed={seed}", *fixed],
        )
        for arm in arms
        for seed, task in chosen
    ]


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def commit() -> str:
    """The last commit that changed the code that trains, or the environment's COMMIT where a copy has no git. Raises InputError
    if a file that decides results was changed.
    """
    if given := os.environ.get("COMMIT"):
        return given
    git = ["git", "-C", str(HERE)]
    trains = [":/bitkd", ":/conf"]
    arms = [f":/experiments/quantizers/{name}" for name in ("*.yaml", "pipeline", "task", "subln.py")]
    if changed := subprocess.check_output([*git, "status", "--porcelain", "--", *trains, *arms], text=True):
        raise InputError(f"the study's code is no commit:\n{changed}commit it first")
    return subprocess.check_output([*git, "log", "-1", "--format=%h", "--", *trains], text=True).strip()


def begin(task: str, name: str) -> None:
    """Write where a trial begins. Raises InputError if it began elsewhere."""
    processor = torch.cuda.get_device_name() if torch.cuda.is_available() else processor_name()
    here = {"commit": commit(), "processor": processor}
    file = LOGS / f"{task}-{name}.json"
    if not file.exists():
        file.write_text(json.dumps(here), encoding="utf-8")
    elif (found := json.loads(file.read_text(encoding="utf-8"))) != here:
        raise InputError(
            f"{task}/{name} began on {found} and cannot go on with {here}; use another run.dir and delete {file}"
        )


def run(task: str, name: str, settings: list[str]) -> int:
    """Run one trial; returns its exit code. Raises InputError if it began elsewhere."""
    begin(task, name)
    program = "experiments.quantizers.subln" if name.startswith(SUBLN) else "bitkd"
    command = ["nice", "-n", "19", sys.executable, "-m", program, "run", f"run.name={name}", *settings]
    with open(LOGS / f"{task}-{name}.log", "a", encoding="utf-8") as log:
        code = subprocess.run(
            command, cwd=ROOT, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
        ).returncode
    print(f"{task}, {name}: {'finished' if code == 0 else f'exit code {code}, see {log.name}'}", flush=True)
    return code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", choices=SWEEPS)
    parser.add_argument("--cells", type=int, nargs="+", choices=CELLS, default=CELLS, metavar="CELL")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--failed", action="append", default=[])
    parser.add_argument("settings", nargs="*")
    arguments = parser.parse_intermixed_args()
    LOGS.mkdir(parents=True, exist_ok=True)
    found = {
        f"{task}/{name}": (task, name, settings) for task, name, settings in trials(arguments.sweep, arguments.cells)
    }
    if unknown := [name for name in arguments.failed if name not in found]:
        raise InputError(f"--failed {unknown[0]} is no trial of these cells; there are {', '.join(found)}")
    chosen = [trial for name, trial in found.items() if name not in arguments.failed]
    with ThreadPoolExecutor(arguments.processes) as pool:
        codes = [pool.submit(run, task, name, [*settings, *arguments.settings]) for task, name, settings in chosen]
        return int(any([code.result() for code in codes]))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        sys.exit(str(error))
