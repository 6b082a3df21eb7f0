"""Both pipelines with two processes, killed at seeded moments and started again, until nothing is left to do; then their tables
and weights must be those of an undisturbed run. torchrun starts the processes of the undisturbed one, Lightning all others.

    python experiments/chaos/chaos.py --out build/chaos
    python experiments/chaos/chaos.py --out build/chaos --kills 4 --pipelines singlestage -- task=demo train.max_steps=20
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")

STARTED = re.compile(r"^stage \d+ of \d+: (\w+)(?: \(.*\))?$")
FINISHED = re.compile(r"^stage \d+ of \d+: (\w+)(?: \(.*\))? finished: ")
LONGEST = 1800.0
"""Seconds after which a run that was not killed is taken for one that hangs."""

GONE_WITHIN = 30.0
"""Seconds within which all processes must be gone after any of them was killed."""

STARTING, ENDED = "(starting)", "(ended before)"
STARTING_SECONDS = 10.0

MARGIN = 0.7
"""The undisturbed run may have been slower: a signal that comes when a stage has ended lets the next one be finished too."""


@dataclass
class Kill:
    """One moment: in which stage, how far through it, which signal, to whom; and what came of it."""

    pipeline: str
    stage: str
    moment: float
    signal: str
    target: str
    hit: str = ""
    code: int | None = None
    seconds: float = 0.0


class Run:
    """A run in processes of its own, whose output is followed line by line."""

    def __init__(self, settings: list[str], log: Path, launcher: Sequence[str] = ()) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, *launcher, "-m", "bitkd", "run", *settings],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=environment,
        )
        self.stage, self.finished = STARTING, Counter[str]()
        self._log, self._changed = log, threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        with open(self._log, "a") as log:
            for line in self.process.stdout:
                log.write(line)
                with self._changed:
                    if found := STARTED.match(line.rstrip()):
                        self.stage = found[1]
                    if found := FINISHED.match(line):
                        self.finished[found[1]] += 1
                    self._changed.notify_all()
        self.process.wait()
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, stages: list[str]) -> None:
        """Until one of the stages has begun, or the run has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self.stage in stages or self.process.poll() is not None, LONGEST)

    def work_for(self, seconds: float) -> None:
        """Until so much time has gone, but no longer than to the end of the present stage."""
        stage = self.stage
        with self._changed:
            self._changed.wait_for(
                lambda: self.finished[stage] or self.stage != stage or self.process.poll() is not None, seconds
            )

    def send(self, number: int, target: str) -> str:
        """To the process that was started (rank 0), to the one that it starts (rank 1), or to all; returns to whom."""
        if target == "all":
            os.killpg(self.process.pid, number)
        elif target == "rank 1" and (ranks := self._children()):
            os.kill(ranks[0], number)
        else:  # rank 1 may not be there yet
            os.kill(self.process.pid, number)
            return "rank 0"
        return target

    def _children(self) -> list[int]:
        file = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(child) for child in file.read_text().split()]

    def wait_until_gone(self, seconds: float = LONGEST) -> int:
        """The exit code; TimeoutError where any process of the run is still there after so long."""
        self._reader.join(seconds)  # it ends when the last process has closed its side
        if self._reader.is_alive():
            os.killpg(self.process.pid, signal.SIGKILL)
            raise TimeoutError(f"some process was still there after {seconds} s")
        return self.process.wait()


def plan_kills(count: int, stages: dict[str, list[str]], seed: int) -> list[Kill]:
    """Seeded moments, in the order of the graph: every stage once or more, and while a run starts."""
    choose = random.Random(seed)
    places = [(pipeline, stage) for pipeline, names in stages.items() for stage in names]
    chosen = places + [choose.choice(places) for _ in range(count - len(places))] if count >= len(places) else None
    chosen = chosen or choose.sample(places, count)
    return [
        Kill(
            *place,
            moment=round(choose.uniform(0.05, 0.95), 2),
            signal=choose.choice(["SIGKILL", "SIGTERM"]),
            target=choose.choice(["rank 0", "rank 1", "all"]),
        )
        for place in sorted(chosen, key=places.index)
    ]


def disturb(
    kills: list[Kill],
    settings: dict[str, list[str]],
    stages: dict[str, list[str]],
    seconds: dict[str, float],
    log: Path,
) -> Counter[str]:
    """Run each pipeline through its kills to its end; how often each stage was finished."""
    finished: Counter[str] = Counter()
    for pipeline, words in settings.items():
        mine = [kill for kill in kills if kill.pipeline == pipeline]
        aims = Counter(kill.stage for kill in mine)
        for number, kill in enumerate(mine, start=1):
            run = Run(words, log)
            # An earlier kill may have come too late and let this stage end: then the next one is hit.
            run.wait_for(stages[pipeline][stages[pipeline].index(kill.stage) :])
            # A stage that is aimed at several times goes on where it was: its kills share its time, and leave some of it.
            run.work_for(MARGIN * kill.moment * seconds[kill.stage] / aims[kill.stage])
            sent = time.monotonic()
            kill.hit = ENDED
            if run.process.poll() is None:
                kill.hit = run.stage
                kill.target = run.send(signal.Signals[kill.signal], kill.target)
            kill.code = run.wait_until_gone(GONE_WITHIN)
            kill.seconds = round(time.monotonic() - sent, 1)
            finished += run.finished
            print(f"{pipeline} {number}: {kill.signal} to {kill.target} in {kill.hit}: code {kill.code}", flush=True)
        run = Run(words, log)
        if run.wait_until_gone() != 0:
            raise RuntimeError(f"{pipeline} did not reach its end; see {log}")
        finished += run.finished
    return finished


def results_of(runs: Path, pipelines: list[str]) -> dict[str, dict]:
    """Of each stage of each pipeline: the hash of its weights, and its numbers (times aside)."""
    found = {}
    for manifest in sorted(runs.glob("*/*/manifest.json")):
        pipeline = manifest.parent.name
        for stage in json.loads(manifest.read_text())["artifacts"] if pipeline in pipelines else ():
            folder = manifest.parent / stage
            record = json.loads((folder / "stage.json").read_text())
            found[f"{pipeline}/{stage}"] = {
                "weights": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
                "metrics": json.loads((folder / "metrics.json").read_text()),
                "numbers": {
                    name: record.get(name) for name in ("steps", "examples", "size", "selected", "selected_step")
                },
            }
    return found


def write_results(record: dict, file: Path) -> None:
    """The log of one full run, for people."""
    kills = [Kill(**kill) for kill in record["kills"]]
    lines = [
        "# Chaos: both pipelines, killed and started again",
        "",
        "```bash",
        "make chaos",
        "```",
        "",
        f"The demo's two pipelines, {record['processes']} processes each, killed {len(kills)} times at moments drawn with seed "
        f"{record['seed']}, and started again with the same command until nothing was left to do. Machine: {record['machine']}.",
        "",
        f"- Stages hit: {len(record['hit'])} of {len(record['stages'])}"
        + (f" (not: {', '.join(record['missed'])})" if record["missed"] else "")
        + f"; in {sum(kill.hit == STARTING for kill in kills)} of the kills the run was still starting.",
        f"- Stages that were finished twice (lost): {len(record['lost'])}.",
        f"- Of {record['artifacts']} artifacts, weights that differ from the undisturbed run's: "
        f"{len(record['different_weights'])}; "
        f"numbers in the table that differ (times aside): {len(record['different_numbers'])}.",
        f"- Longest time from the signal until every process was gone: {max(kill.seconds for kill in kills)} s.",
        "",
        "| # | pipeline | aimed at | hit | signal | to | exit code | gone after (s) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for number, kill in enumerate(kills, start=1):
        cells = (number, kill.pipeline, kill.stage, kill.hit, kill.signal, kill.target, kill.code, kill.seconds)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += [
        "",
        "Exit codes: 75 asked to stop (and saved, if work had begun), 1 a rank lost its partner, negative: the signal.",
        "",
    ]
    file.write_text("\n".join(lines), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and of the log")
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pipelines", nargs="+", default=["multistage", "singlestage"])
    parser.add_argument("--results", type=Path, help="also write RESULTS.md and record.json into this folder")
    parser.add_argument("settings", nargs="*", default=["task=demo"])
    arguments = parser.parse_args()
    shutil.rmtree(arguments.out, ignore_errors=True)
    arguments.out.mkdir(parents=True)
    common = ["trainer.accelerator=cpu", "trainer.devices=2", "checkpoint.every_steps=20", *arguments.settings]

    def settings(runs: str) -> dict[str, list[str]]:
        return {p: [f"pipeline={p}", f"run.dir={arguments.out / runs}", *common] for p in arguments.pipelines}

    for words in settings("whole").values():
        if Run(words, arguments.out / "whole.log", TORCHRUN).wait_until_gone() != 0:
            raise RuntimeError(f"the undisturbed run failed; see {arguments.out / 'whole.log'}")
    whole = results_of(arguments.out / "whole", arguments.pipelines)
    stages: dict[str, list[str]] = {pipeline: [] for pipeline in arguments.pipelines}
    seconds = {STARTING: STARTING_SECONDS}
    for name in whole:  # a stage that pipelines share is computed, and hit, in the first of them
        pipeline, stage = name.split("/")
        if not stages[pipeline]:
            stages[pipeline].append(STARTING)
        if stage not in seconds:
            stages[pipeline].append(stage)
            folder = next(arguments.out.glob(f"whole/*/{name}"))
            seconds[stage] = json.loads((folder / "stage.json").read_text())["seconds"]

    kills = plan_kills(arguments.kills, stages, arguments.seed)
    finished = disturb(kills, settings("killed"), stages, seconds, arguments.out / "killed.log")
    killed = results_of(arguments.out / "killed", arguments.pipelines)
    hit = {kill.hit for kill in kills} - {STARTING, ENDED}
    record = {
        "seed": arguments.seed,
        "processes": 2,
        "machine": f"{os.cpu_count()} cores, Python {sys.version.split()[0]}",
        "kills": [asdict(kill) for kill in kills],
        "stages": [stage for stage in seconds if stage != STARTING],
        "hit": sorted(hit),
        "missed": sorted({kill.stage for kill in kills} - hit - {STARTING}),
        "unsent": sum(kill.hit == ENDED for kill in kills),
        "lost": sorted(stage for stage, count in finished.items() if count > 1),
        "artifacts": len(whole),
        "different_weights": sorted(n for n in whole if whole[n]["weights"] != killed.get(n, {}).get("weights")),
        "different_numbers": sorted(
            n for n in whole if any(whole[n][part] != killed.get(n, {}).get(part) for part in ("metrics", "numbers"))
        ),
    }
    for folder in [arguments.out, *([arguments.results] if arguments.results else [])]:
        (folder / "record.json").write_text(json.dumps(record, indent=1) + "\n")
        write_results(record, folder / "RESULTS.md")
    wrong = ("missed", "unsent", "lost", "different_weights", "different_numbers")
    bad = {name: record[name] for name in wrong if record[name]}
    print(
        f"failed: {bad}" if bad else f"{len(kills)} kills, nothing lost, nothing different: {arguments.out}/RESULTS.md"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
