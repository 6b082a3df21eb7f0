"""SIGTERM and SIGUSR1, the ways in which clusters ask a job to leave, and Ctrl-C, that of people: finish the step, save, go with
a code that says so.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

from bitkd.errors import StoppedError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

STOPPED, INTERRUPTED = 75, 130
"""Exit codes of a run that was asked to stop by a signal (sysexits' EX_TEMPFAIL: try again), and by Ctrl-C."""

WATCH_SECONDS = 2.0


class Stopping:
    """Remembers that this process was asked to stop. Lightning's own handler would broadcast from inside itself, and hang
    where one rank alone is asked, so it is replaced wherever Lightning has put it.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def install(self) -> None:
        """Take over the signals."""
        _handle(self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == self.received == signal.SIGINT:
            _leave(INTERRUPTED, "interrupted twice; run the same command again to go on from the last checkpoint")
        self.received = number
        if number == signal.SIGINT:
            _say("finishing the step and saving; Ctrl-C again leaves at once")

    @property
    def code(self) -> int:
        """What this process should exit with."""
        return INTERRUPTED if self.received == signal.SIGINT else STOPPED

    @property
    def requested(self) -> bool:
        return self.received is not None

    def check(self, agreed: bool | None = None) -> None:
        """Raise StoppedError where this process (or, as `agreed` says, any of the group) was asked to stop."""
        if self.requested if agreed is None else agreed:
            raise StoppedError("asked to stop", self.code)


def leave_when_asked() -> None:
    """Until there is work to save, a process that is asked to stop leaves at once, with the code that says so."""

    def leave(number: int, frame: FrameType | None) -> None:
        code = INTERRUPTED if number == signal.SIGINT else STOPPED
        _leave(code, "asked to stop before any work; run the same command again")

    _handle(leave)


def follow_parent() -> None:
    """Leave when the process that started this one is gone: a rank would wait in a collective for those that it killed.

    To be called early: a parent that is gone already cannot be told from one that adopted this process.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK")
        _leave(1, f"rank {rank}: the launcher is gone; run the same command again to go on")

    threading.Thread(target=watch, daemon=True).start()


def _handle(handler: Callable[[int, FrameType | None], None]) -> None:
    """Only a process's main thread can take signals over."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, handler)


def _leave(code: int, why: str) -> None:
    """End this process without waiting for anything that it may hang in."""
    _say(why)
    os._exit(code)


def _say(text: str) -> None:
    """Print from a signal handler, which may have interrupted another print."""
    with contextlib.suppress(OSError):
        os.write(2, f"bitkd: {text}\n".encode())
