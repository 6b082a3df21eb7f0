"""SIGTERM and SIGUSR1, the ways in which clusters ask a job to leave, and Ctrl-C, that of people: finish the step, save, go with
a code that says so.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from bitkd.errors import StoppedError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

STOPPED, INTERRUPTED = 75, 130
"""Exit codes of a run that was asked to stop by a signal (sysexits' EX_TEMPFAIL: try again), and by Ctrl-C."""

LAUNCHER = "BITKD_LAUNCHER"
"""Environment variable with the process id of rank zero, for the processes that it starts."""

WATCH_SECONDS = 2.0


class Stopping:
    """Remembers that this process was asked to stop. Lightning's own handler would broadcast from inside itself, and hang
    where one rank alone is asked, so it is replaced wherever Lightning has put it.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._give_back: Callable[[], None] | None = None

    def install(self) -> None:
        """Take over the signals, again where Lightning has taken them meanwhile."""
        give_back = hear(self._note)
        self._give_back = self._give_back or give_back

    def restore(self) -> None:
        """Give the signals back to whoever had them before."""
        if self._give_back:
            self._give_back()

    def _note(self, number: int) -> None:
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


def leave_when_asked() -> Callable[[], None]:
    """Until there is work to save, a process that is asked to stop leaves at once, with the code that says so.

    Returns a function that gives the signals back.
    """

    def leave(number: int) -> None:
        code = INTERRUPTED if number == signal.SIGINT else STOPPED
        _leave(code, "asked to stop before any work; run the same command again")

    return hear(leave)


def follow_parent() -> None:
    """Leave when the process that started this one is gone: a rank would wait in a collective for those that it killed."""
    parent = int(os.environ.get(LAUNCHER, os.getppid()))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK")
        _leave(1, f"rank {rank}: the launcher is gone; run the same command again to go on")

    threading.Thread(target=watch, daemon=True).start()


_hearers: list[Callable[[int], None]] = []


def hear(hearer: Callable[[int], None]) -> Callable[[], None]:
    """Have `hearer` called with the number of each signal; returns a function that puts back what was there before.

    It is called in a thread of its own, because Python runs a handler only when the main thread comes back from native
    code, and a collective whose other side is gone does not come back. A signal that is ignored stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    earlier = list(_hearers)
    if not earlier:
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=_forget)  # loader processes are told to leave in other ways
        threading.Thread(target=_listen, args=(read,), daemon=True).start()
    _hearers[:] = [hearer]
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _heard)

    def give_back() -> None:
        _hearers[:] = earlier or [lambda number: None]
        for number, handler in before.items():
            signal.signal(number, handler)

    return give_back


def _heard(number: int, frame: Any) -> None:
    """Only replaces what the signal would do by itself."""


def _listen(pipe: int) -> None:
    while numbers := os.read(pipe, 1):
        if numbers[0] in SIGNALS:
            _hearers[0](numbers[0])


def _forget() -> None:
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        if signal.getsignal(number) is _heard:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def _leave(code: int, why: str) -> None:
    """End this process without waiting for anything that it may hang in."""
    _say(why)
    os._exit(code)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"bitkd: {text}\n".encode())
