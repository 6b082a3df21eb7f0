"""Exceptions that end a command early, and helpers for their messages."""

import difflib
import reprlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints


class InputError(ValueError):
    """Bad input, found before any work starts: the message says what was found, what is allowed, what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class StoppedError(Exception):
    """The process was asked to stop (SIGTERM, SIGUSR1, Ctrl-C), and has saved its state.

    code: what the command line exits with, 75 (sysexits' EX_TEMPFAIL: try again), or 130 after Ctrl-C.
    """

    def __init__(self, message: str, code: int = 75) -> None:
        super().__init__(message)
        self.code = code


_SHORT = reprlib.Repr()
_SHORT.maxlist = _SHORT.maxdict = 20
_SHORT.maxstring = _SHORT.maxother = 80


def shorten(value: Any) -> str:
    """`repr(value)`, cut in the middle where it is long: a message never quotes a whole file or field."""
    text = _SHORT.repr(value)
    return text if len(text) <= 500 else f"{text[:300]} ... {text[-100:]}"


def nearest(name: str, allowed: Iterable[str], show_all: bool = False) -> str:
    """A hint such as "did you mean multistage?", or the list of what is allowed.

    show_all: list what is allowed in any case.
    """
    allowed = list(allowed)
    match = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    everything = f"use one of {', '.join(allowed)}"
    return f"did you mean {match[0]}?{f' ({everything})' if show_all else ''}" if match else everything


def check_choices(spec: Any, where: str = "") -> None:
    """Check the fields of a dataclass that are annotated with a Literal, because Python itself accepts any value.

    where: put before the field's name in the message, such as "loss.".
    Raises InputError that names the field, the value and what is allowed.
    """
    for name, annotation in get_type_hints(type(spec)).items():
        allowed = choices_of(annotation)
        if allowed and getattr(spec, name) not in allowed:
            shown = [str(choice) for choice in allowed if choice is not None]
            raise InputError(
                f"{where}{name}={getattr(spec, name)} is unknown; {nearest(str(getattr(spec, name)), shown, True)}"
            )


def choices_of(annotation: Any) -> tuple[Any, ...]:
    """The values of `Literal[...]` or `Literal[...] | None`; empty for another annotation."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    found = [choice for part in get_args(annotation) for choice in choices_of(part)]
    return (*found, None) if found and NoneType in get_args(annotation) else tuple(found)


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Within this context, a failed write raises InputError, which asks for another folder."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{folder} is not writable ({error.strerror or error}); choose another folder with run.dir= or run.store="
        ) from error
