"""Graceful shutdown: on SIGTERM, SIGUSR1 (cluster) or Ctrl-C, finish the current step, save, and exit with 75 or 130."""

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
"""Exit codes of a run that was asked to stop: by a signal (sysexits' EX_TEMPFAIL: try again), and by Ctrl-C."""

LAUNCHER = "BITKD_LAUNCHER"
"""Environment variable with the process id of rank zero, for the processes that it starts."""

WATCH_SECONDS = 2.0


class Stopping:
    """Remembers that this process was asked to stop.

    It replaces Lightning's own signal handler, which runs a collective inside the handler and hangs if only one rank
    received the signal.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._restore: Callable[[], None] | None = None

    def install(self) -> None:
        """Handle the signals; call it again after Lightning has installed its own handlers."""
        restore = on_signal(self._receive)
        self._restore = self._restore or restore

    def restore(self) -> None:
        """Restore the earlier handlers."""
        if self._restore:
            self._restore()

    def _receive(self, number: int) -> None:
        if number == self.received == signal.SIGINT:
            _leave(INTERRUPTED, "interrupted twice; run the same command again to resume from the last checkpoint")
        self.received = number
        if number == signal.SIGINT:
            _say("finishing the step and saving; Ctrl-C again leaves at once")

    @property
    def code(self) -> int:
        """Exit code of this process."""
        return INTERRUPTED if self.received == signal.SIGINT else STOPPED

    @property
    def requested(self) -> bool:
        """Whether this process was asked to stop."""
        return self.received is not None

    def check(self, agreed: bool | None = None) -> None:
        """Raises StoppedError if this process was asked to stop.  agreed: what the whole group decided, instead."""
        if self.requested if agreed is None else agreed:
            raise StoppedError("asked to stop", self.code)


def exit_on_signal() -> Callable[[], None]:
    """Exit at once, with the code for it, when this process is asked to stop: there is no work to save yet.

    Returns a function that restores the earlier handlers.
    """

    def leave(number: int) -> None:
        code = INTERRUPTED if number == signal.SIGINT else STOPPED
        _leave(code, "asked to stop before any work; run the same command again")

    return on_signal(leave)


def exit_with_parent() -> None:
    """Exit when the process that started this one has ended; otherwise a rank would wait in a collective for ever."""
    _launchers[:] = [int(os.environ.get(LAUNCHER, os.getppid()))]

    def watch() -> None:
        while True:
            exit_if_parent_is_gone()
            time.sleep(WATCH_SECONDS)

    threading.Thread(target=watch, daemon=True).start()


_launchers: list[int] = []
"""The process that `exit_with_parent` looks at; empty before it is called."""


def exit_if_parent_is_gone() -> None:
    """Exit now if `exit_with_parent` would soon: a rank that was quicker to leave looks like a failure to the others."""
    if _launchers and os.getppid() != _launchers[0]:
        rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK")
        _leave(1, f"rank {rank}: the launcher is gone; run the same command again to resume")


_handlers: list[Callable[[int], None]] = []
"""The handler in use; empty before the first one."""


def on_signal(handler: Callable[[int], None]) -> Callable[[], None]:
    """Call `handler` with the number of each of SIGNALS; returns a function that restores the earlier handlers.

    It is called in another thread: Python runs a signal handler only when the main thread returns from native code, and
    a collective whose other side is gone never returns. A signal that is ignored stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    earlier = list(_handlers)
    if not earlier:
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=_forget)  # Lightning and torch end the loader processes
        threading.Thread(target=_listen, args=(read,), daemon=True).start()
    _handlers[:] = [handler]
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, old in before.items():
        if old is not signal.SIG_IGN:
            signal.signal(number, _noop)

    def restore() -> None:
        _handlers[:] = earlier or [lambda number: None]
        for number, old in before.items():
            signal.signal(number, old)

    return restore


def _noop(number: int, frame: Any) -> None:
    """Replaces the signal's default action; `_listen` does the work."""


def _listen(pipe: int) -> None:
    while numbers := os.read(pipe, 1):
        if numbers[0] in SIGNALS:
            _handlers[0](numbers[0])


def _forget() -> None:
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        if signal.getsignal(number) is _noop:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def _leave(code: int, why: str) -> None:
    """End this process at once: a normal exit could hang, for example in a collective."""
    _say(why)
    os._exit(code)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"bitkd: {text}\n".encode())
