"""A cache of facts about files (hashes, row counts, tokenizer sizes), so that planning need not import torch again until a
file changes.
"""

import contextlib
import os
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bitkd.config.schema import Config, cache_root
from bitkd.files import digest, read_json, write_json

PACKAGE = Path(__file__).resolve().parent.parent
LIBRARIES = ("numpy", "torch", "transformers", "tokenizers", "datasets")


class FactCache:
    """Facts of files, kept under `folder`.

    read_disk: use entries of earlier processes. They are keyed by file size and mtime, which can miss an edit; a run
    therefore always recomputes.
    """

    def __init__(self, folder: Path, read_disk: bool) -> None:
        self.folder = folder
        self.read_disk = read_disk
        self._found: dict[Path, dict[str, Any]] = {}
        self._process_only: dict[str, Any] = {}

    def get(self, name: str, settings: Any, files: Iterable[Path] | None, compute: Callable[[], Any]) -> Any:
        """The fact `name`, computed at the first call. An InputError is not cached, because its cause may go away
        without a change of a file.

        settings: what the fact depends on besides files.  files: everything that is read; None if it can change
        unnoticed, as on the hub: the fact then holds for this process only.
        """
        if files is None:
            key = digest([name, settings])
            if key not in self._process_only:
                self._process_only[key] = compute()
            return self._process_only[key]
        file = self.folder / f"{name}-{digest([settings, _states(files), _code()])}.json"
        found = self._found.get(file) or (read_json(file) if self.read_disk else None) or {"fact": compute()}
        self._found[file] = found
        return found["fact"]

    def save(self) -> None:
        """Write the facts to disk for later processes."""
        with contextlib.suppress(OSError):  # a read-only store
            self.folder.mkdir(parents=True, exist_ok=True)
            for file, found in self._found.items():
                write_json(file, found)


def open_cache(config: Config, read_disk: bool) -> FactCache:
    """The facts that runs with one store share."""
    return FactCache(cache_root(config) / "facts", read_disk)


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
    """Changes with bitkd's code and the libraries that compute facts."""
    return digest([_states(PACKAGE.rglob("*.py")), [version(name) for name in LIBRARIES]])
