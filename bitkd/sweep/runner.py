"""Runs a sweep's trials one after another, each as a process of its own, as `wandb agent` does."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bitkd.errors import StoppedError
from bitkd.processes.signals import INTERRUPTED, STOPPED, hear
from bitkd.store.lock import TIMEOUT_SECONDS
from bitkd.sweep.trials import FAILED, FINISHED, RUNNING, Sweep, Trial, score_of
from bitkd.sweep.trials import STOPPED as CUT

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>


def run_sweep(sweep: Sweep, shard: tuple[int, int], console: Any) -> list[Trial]:
    """Run the trials of a shard (i, n), those whose number is i - 1 modulo n; returns those that failed.

    Finished trials are skipped; one that was cut goes on, one that failed is tried again. Raises StoppedError where the sweep
    or a trial was asked to stop.
    """
    sweep.begin()
    failed: list[Trial] = []
    left = 0
    outlet = _Outlet()
    give_back = hear(outlet.pass_on)
    try:
        for number in range(shard[0] - 1, sweep.total, shard[1]):
            if outlet.code is not None:
                raise _stopped(outlet.code)
            if _target_reached(sweep):
                console.print(f"the score {sweep.spec.target:g} is reached: no more trials (metric.target)")
                break
            trial = sweep.trial(number)
            lock = sweep.lock(trial)
            label = f"trial {number + 1} of {sweep.total}: {trial.name}"
            # A holder that has been silent is given the time in which its lock is taken over.
            if lock.wait(0 if lock.is_held(TIMEOUT_SECONDS) else 2 * TIMEOUT_SECONDS) != "held":
                console.print(f"{label} is run by {lock.holder()}")
                left += 1
                continue
            try:
                trial = sweep.read(trial)  # another process may have finished it just now
                if trial.state == FINISHED:
                    console.print(f"{label} is done already")
                    continue
                _run_trial(sweep, trial, outlet, label, console)
            finally:
                lock.release()
            if trial.state == FAILED:
                failed.append(trial)
            if trial.state == CUT:
                raise _stopped(outlet.code or trial.exit_code or STOPPED)
    finally:
        give_back()
    if left:
        console.print(
            f"{left} of {sweep.total} trials were left to the processes that hold them; run this again to see"
        )
    return failed


def _stopped(code: int) -> StoppedError:
    return StoppedError("the sweep stopped as asked; run the same command again to go on", code)


def _run_trial(sweep: Sweep, trial: Trial, outlet: "_Outlet", label: str, console: Any) -> None:
    console.print(f"{label}: {' '.join(f'{key}={value}' for key, value in trial.parameters.items())}")
    trial.state, trial.starts, trial.score, trial.exit_code = RUNNING, trial.starts + 1, None, None
    sweep.keep(trial)
    began, before = time.monotonic(), trial.seconds
    with open(trial.log, "ab") as log:
        trial.exit_code = outlet.run(sweep.command(trial), log)
    trial.seconds = round(before + time.monotonic() - began, 2)
    score = score_of(Path(trial.run))
    if trial.exit_code == 0 and score is not None:
        trial.state, trial.score = FINISHED, score
        told = f"finished: score {score:.4f}, {trial.seconds:.0f} s"
    elif trial.exit_code in (STOPPED, INTERRUPTED) or (outlet.code is not None and trial.exit_code != 0):
        trial.state = CUT
        told = "stopped"
    else:
        trial.state = FAILED
        told = f"failed with code {trial.exit_code}: {_last_line(Path(trial.log))} (log: {trial.log})"
    sweep.keep(trial)
    console.print(f"{label} {told}")


class _Outlet:
    """Starts processes, and passes on to the living one what this process is asked by signals."""

    def __init__(self) -> None:
        self.code: int | None = None
        """What this process should exit with, once it was asked to stop."""
        self._process: subprocess.Popen | None = None
        self._turn = threading.Lock()

    def pass_on(self, number: int) -> None:
        with self._turn:
            self.code = INTERRUPTED if number == signal.SIGINT else STOPPED
            if self._process is not None and self._process.poll() is None:
                self._process.send_signal(number)  # not to its group: without its loaders it could not end the step

    def run(self, words: list[str], log: Any) -> int:
        """Run a command to its end; returns its exit code (128 + n where signal n killed it, 127 where it cannot start)."""
        environment = dict(os.environ)
        environment.pop("WANDB_SERVICE", None)  # as wandb agent: the trial has a wandb of its own
        with self._turn:
            if self.code is not None:
                return self.code
            try:
                # A group of its own: Ctrl-C in a terminal reaches it through us alone, once.
                self._process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    process_group=0,
                    preexec_fn=_leave_with_parent(),
                )
            except OSError as error:
                log.write(f"{words[0]} cannot be started: {error}\n".encode())
                return 127
        code = self._process.wait()
        return 128 - code if code < 0 else code


def _leave_with_parent() -> Callable[[], None] | None:
    """Where the system can (Linux): a trial whose sweep was killed is asked to stop, and saves."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def _target_reached(sweep: Sweep) -> bool:
    target = sweep.spec.target
    return target is not None and any(
        trial.score is not None and trial.score >= target for trial in sweep.listed() if trial.state == FINISHED
    )


def _last_line(log: Path) -> str:
    with open(log, "rb") as stream:
        stream.seek(max(0, log.stat().st_size - 4096))
        lines = [line.strip() for line in stream.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it wrote nothing"
