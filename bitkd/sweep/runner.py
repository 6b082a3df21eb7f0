"""Runs the trials of a sweep one after another, each in its own process, as `wandb agent` does."""

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
from bitkd.processes.signals import INTERRUPTED, STOPPED, on_signal
from bitkd.store.lock import TIMEOUT_SECONDS
from bitkd.sweep.trials import Sweep, Trial, TrialState, score_of

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>


def run_sweep(sweep: Sweep, shard: tuple[int, int], console: Any) -> list[Trial]:
    """Run the trials of a shard (i, n), those whose number is i - 1 modulo n; returns those that failed.

    Finished trials are skipped, interrupted ones resumed, failed ones tried again. Raises StoppedError if the sweep or a
    trial was asked to stop.
    """
    sweep.begin()
    failed: list[Trial] = []
    left = 0
    process = TrialProcess()
    restore = on_signal(process.forward)
    try:
        for number in range(shard[0] - 1, sweep.total, shard[1]):
            if process.code is not None:
                raise _stopped(process.code)
            if _target_reached(sweep):
                console.print(f"the score {sweep.spec.target:g} is reached: no more trials (metric.target)")
                break
            trial = sweep.trial(number)
            lock = sweep.lock(trial)
            label = f"trial {number + 1} of {sweep.total}: {trial.name}"
            # If the holder looks dead, wait long enough for its lock to expire.
            if lock.wait(0 if lock.is_held(TIMEOUT_SECONDS) else 2 * TIMEOUT_SECONDS) != "held":
                console.print(f"{label} is run by {lock.holder()}")
                left += 1
                continue
            try:
                trial = sweep.read(trial)  # another process may have finished it meanwhile
                if trial.state == TrialState.FINISHED:
                    console.print(f"{label} is done already")
                    continue
                _run_trial(sweep, trial, process, label, console)
            finally:
                lock.release()
            if trial.state == TrialState.FAILED:
                failed.append(trial)
            if trial.state == TrialState.STOPPED:
                raise _stopped(process.code or trial.exit_code or STOPPED)
    finally:
        restore()
    if left:
        console.print(
            f"{left} of {sweep.total} trials are run by other processes; run the same command again to see them"
        )
    return failed


def _stopped(code: int) -> StoppedError:
    return StoppedError("the sweep stopped as asked; run the same command again to resume", code)


def _run_trial(sweep: Sweep, trial: Trial, process: "TrialProcess", label: str, console: Any) -> None:
    console.print(f"{label}: {' '.join(f'{key}={value}' for key, value in trial.parameters.items())}")
    trial.state, trial.starts, trial.score, trial.exit_code = TrialState.RUNNING, trial.starts + 1, None, None
    sweep.keep(trial)
    began, before = time.monotonic(), trial.seconds
    if os.path.islink(trial.log):  # the trial would write where it leads
        os.unlink(trial.log)
    with open(trial.log, "ab") as log:
        trial.exit_code = process.run(sweep.command(trial), log)
    trial.seconds = round(before + time.monotonic() - began, 2)
    score = score_of(Path(trial.run))
    if trial.exit_code == 0 and score is not None:
        trial.state, trial.score = TrialState.FINISHED, score
        outcome = f"finished: score {score:.4f}, {trial.seconds:.0f} s"
    elif trial.exit_code in (STOPPED, INTERRUPTED) or (process.code is not None and trial.exit_code != 0):
        trial.state = TrialState.STOPPED
        outcome = "stopped"
    else:
        trial.state = TrialState.FAILED
        outcome = f"failed with code {trial.exit_code}: {_last_line(Path(trial.log))} (log: {trial.log})"
    sweep.keep(trial)
    console.print(f"{label} {outcome}")


class TrialProcess:
    """The process of the current trial; signals that this process receives are forwarded to it."""

    def __init__(self) -> None:
        self.code: int | None = None
        """Exit code of this process, once it was asked to stop."""
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def forward(self, number: int) -> None:
        """Send a signal to the trial, if one is running."""
        with self._lock:
            self.code = INTERRUPTED if number == signal.SIGINT else STOPPED
            if self._process is not None and self._process.poll() is None:
                self._process.send_signal(number)  # not to its group: it needs its loader processes to finish the step

    def run(self, words: list[str], log: Any) -> int:
        """Run a command to its end; returns its exit code (128 + n if signal n killed it, 127 if it cannot be started)."""
        environment = dict(os.environ)
        environment["PYTHONSAFEPATH"] = "1"  # `python -m bitkd` would import a bitkd of the current folder
        environment.pop("WANDB_SERVICE", None)  # as wandb agent does: the trial starts its own wandb service
        with self._lock:
            if self.code is not None:
                return self.code
            try:
                # In its own process group, so that Ctrl-C in a terminal reaches it once, through `forward`.
                self._process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    process_group=0,
                    preexec_fn=_stop_with_parent(),
                )
            except OSError as error:
                log.write(f"{words[0]} cannot be started: {error}\n".encode())
                return 127
        code = self._process.wait()
        return 128 - code if code < 0 else code


def _stop_with_parent() -> Callable[[], None] | None:
    """On Linux: the kernel asks the trial to stop when the sweep is killed, so that it saves."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def _target_reached(sweep: Sweep) -> bool:
    target = sweep.spec.target
    return target is not None and any(
        trial.score is not None and trial.score >= target
        for trial in sweep.listed()
        if trial.state == TrialState.FINISHED
    )


def _last_line(log: Path) -> str:
    with open(log, "rb") as stream:
        stream.seek(max(0, log.stat().st_size - 4096))
        lines = [line.strip() for line in stream.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it wrote nothing"
