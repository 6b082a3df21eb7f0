"""What was found in files before: until they change nobody needs to look again, nor to load the libraries that looking takes."""

import contextlib
import os
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bitkd.config.schema import Config, store_root
from bitkd.files import digest, read_json, write_json

PACKAGE = Path(__file__).resolve().parent.parent
LIBRARIES = ("numpy", "torch", "transformers", "tokenizers", "datasets")


class Memo:
    """Facts of files, kept under `folder`.

    recall: whether earlier looks count. They go by size and time of the files, so a run, whose artifacts last, looks itself.
    """

    def __init__(self, folder: Path, recall: bool) -> None:
        self.folder = folder
        self.recall = recall
        self._found: dict[Path, dict[str, Any]] = {}
        self._unkept: dict[str, Any] = {}

    def fact(self, name: str, settings: Any, files: Iterable[Path] | None, look: Callable[[], Any]) -> Any:
        """What `look` finds, as plain data. An InputError is not remembered: it may be mended where no file changes.

        settings: what decides how it looks.  files: all that it reads; null where that may change without a sign here, as
        on the hub: then it holds for this process alone.
        """
        if files is None:
            key = digest([name, settings])
            if key not in self._unkept:
                self._unkept[key] = look()
            return self._unkept[key]
        file = self.folder / f"{name}-{digest([settings, _states(files), _code()])}.json"
        found = self._found.get(file) or (read_json(file) if self.recall else None) or {"fact": look()}
        self._found[file] = found
        return found["fact"]

    def keep(self) -> None:
        """Write down what was found, for later processes."""
        with contextlib.suppress(OSError):  # a store that can only be read
            self.folder.mkdir(parents=True, exist_ok=True)
            for file, found in self._found.items():
                write_json(file, found)


def open_memo(config: Config, recall: bool) -> Memo:
    """The facts that runs with one store share."""
    return Memo(store_root(config).parent / "cache" / "facts", recall)


def _states(files: Iterable[Path]) -> list[list[Any]]:
    return [[str(file.absolute()), *_state(file)] for file in sorted(set(files))]


def _state(file: Path) -> tuple[int, int]:
    try:
        found = os.stat(file)
    except OSError:
        return (-1, -1)
    return (found.st_size, found.st_mtime_ns)


@cache
def _code() -> str:
    """Changes with the code and the libraries that look."""
    return digest([_states(PACKAGE.rglob("*.py")), [version(name) for name in LIBRARIES]])
