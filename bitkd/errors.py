"""What ends a command early, other than a failure of the work itself."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input, found before any work starts: the message says what was found, what is allowed, what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class StoppedError(Exception):
    """The process was asked to leave (SIGTERM, SIGUSR1, Ctrl-C), and has saved where it is.

    code: what the command line exits with, 75 (sysexits' EX_TEMPFAIL: try again), or 130 after Ctrl-C.
    """

    def __init__(self, message: str, code: int = 75) -> None:
        super().__init__(message)
        self.code = code


def nearest(name: str, allowed: Iterable[str]) -> str:
    """A hint such as "did you mean multistage?", or the list of what is allowed."""
    allowed = list(allowed)
    match = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    return f"did you mean {match[0]}?" if match else f"use one of {', '.join(allowed)}"
