"""SIGTERM and SIGUSR1, the ways in which clusters ask a job to leave: finish the step, save, go with a code that says so."""

import os
import signal
import sys
import threading
import time
from types import FrameType

from bitkd.callbacks.checkpoints import StoppedError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
WATCH_SECONDS = 2.0


class Stopping:
    """Remembers that this process was asked to stop. Lightning's own handler would broadcast from inside itself, and hang
    where one rank alone is asked, so it is replaced wherever Lightning has put it.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def install(self) -> None:
        """Take over the signals; only a process's main thread can."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number

    @property
    def requested(self) -> bool:
        return self.received is not None

    def check(self, agreed: bool | None = None) -> None:
        """Raise StoppedError where this process (or, as `agreed` says, any of the group) was asked to stop."""
        if self.requested if agreed is None else agreed:
            raise StoppedError("asked to stop")


def follow_parent(rank: int) -> None:
    """Leave when the process that started this one is gone: a rank would wait in a collective for those that it killed."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        print(
            f"bitkd: rank {rank}: the launcher is gone; run the same command again to go on",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
