"""What is in a store, which runs need it, and what can be deleted."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any

from bitkd.errors import InputError
from bitkd.files import read_json
from bitkd.names import shown
from bitkd.store.artifacts import KEY, METRICS_FILE, STAGE_FILE, Store
from bitkd.store.records import LARGEST
from bitkd.store.run_folder import MANIFEST

DAY = 86400


@dataclass(frozen=True)
class Entry:
    """An artifact, or the work folder of an unfinished stage."""

    key: str
    finished: bool
    title: str
    task: str
    score: float | None
    size: int
    """Bytes."""

    age: float
    """Days since it was last written."""

    runs: list[str]
    """Folders of the runs that need it."""


@dataclass(frozen=True)
class Inventory:
    """Everything in a store, the oldest entry first."""

    entries: list[Entry]

    @property
    def size(self) -> int:
        """Bytes of all entries together."""
        return sum(entry.size for entry in self.entries)


def take_inventory(store: Store, runs: Path) -> Inventory:
    """List a store.  runs: a folder of runs (`run.dir`), besides those registered in the store.

    Raises InputError if there is no store.
    """
    if not store.exists():
        raise InputError(f"{store.root} is no store; name one with run.dir= or run.store=")
    needed = keys_in_use(store, runs)
    found = []
    for key, folder in [*_children(store.root), *_children(store.root / ".work")]:
        finished = folder.parent == store.root
        stage, metrics = (_record(folder / name) for name in (STAGE_FILE, METRICS_FILE))
        score = metrics.get("score")
        files = _files(folder)
        found.append(
            Entry(
                key=key,
                finished=finished,
                title=shown(str(stage.get("title", "unreadable" if finished else "unfinished"))),
                task=shown(str(stage.get("task", ""))),
                score=float(score) if isinstance(score, int | float) and abs(score) < LARGEST else None,
                size=sum(state.st_size for state in files if S_ISREG(state.st_mode)),
                age=(time.time() - max((state.st_mtime for state in files), default=time.time())) / DAY,
                runs=[name for name, keys in needed.items() if key in keys],
            )
        )
    return Inventory(sorted(found, key=lambda entry: (-entry.age, entry.key)))


def prune(
    store: Store,
    inventory: Inventory,
    runs: Path,
    days: float | None = None,
    size: int | None = None,
    needed_too: bool = False,
    dry: bool = False,
) -> tuple[list[Entry], list[Entry]]:
    """Remove entries, the oldest first. Returns the removed ones, and those kept because an active run needs them.

    days: remove only entries not written for this many days.  size: stop when the store has at most this many bytes.
    needed_too: also remove what finished runs need; they would compute it again.  dry: remove nothing, only list.
    """
    removed, busy = [], []
    total = inventory.size
    for entry in inventory.entries:
        if size is not None and total <= size:
            break
        if days is not None and entry.age < days:
            continue
        active = set(store.active_runs())
        needed = keys_in_use(store, runs)  # again for each entry: a run may have started meanwhile
        wanted_by = {name for name, keys in needed.items() if entry.key in keys}
        if wanted_by and not needed_too:
            continue
        if wanted_by & active or entry.key in store.locked():
            busy.append(entry)
            continue
        if not dry:
            lock = store.lock(entry.key)
            if lock.wait(0) != "held":
                busy.append(entry)
                continue
            try:
                store.remove(entry.key) if entry.finished else store.drop_work(entry.key)
            finally:
                lock.release()
        removed.append(entry)
        total -= entry.size
    return removed, busy


def keys_in_use(store: Store, runs: Path) -> dict[str, set[str]]:
    """Folder of each run -> the keys it needs: of its plan, of its links, and of artifacts that its settings name.

    A run that cannot be seen (on another machine, or on a disk that is not mounted) needs the keys it was registered
    with. A run whose folder was deleted on this machine needs nothing.
    """
    found: dict[str, set[str]] = {}
    for folder, host, registered in store.registered():
        path = Path(folder)
        deleted = host == socket.gethostname() and path.parent.parent.is_dir() and not _is_run(path)
        if not deleted:
            found[folder] = set(registered)
    for path in runs.glob("*/*"):
        if _is_run(path):
            found.setdefault(str(path), set())
    for folder, keys in found.items():
        keys |= _keys_in_folder(Path(folder))
    return found


def _keys_in_folder(run: Path) -> set[str]:
    """Keys in a run folder. Not read by RunFolder: a manifest that is damaged or of another version must count too."""
    found = {link.readlink().name for link in _links(run)}
    manifest = read_json(run / MANIFEST)
    sections = [manifest.get(name) for name in ("planned", "artifacts")] if isinstance(manifest, dict) else []
    values = [value for section in sections if isinstance(section, dict) for value in section.values()]
    return found | {value for value in values if isinstance(value, str)}


def _links(run: Path) -> list[Path]:
    """Links to artifacts; none if the folder cannot be read, or is no folder."""
    try:
        return [child for child in run.iterdir() if child.is_symlink() and not child.name.startswith(".")]
    except OSError:
        return []


def _is_run(folder: Path) -> bool:
    try:
        return (folder / MANIFEST).is_file() or bool(_links(folder))
    except OSError:  # no permission to read the folder
        return True


def _children(folder: Path) -> Iterator[tuple[str, Path]]:
    if folder.is_dir():
        for child in folder.iterdir():
            if KEY.fullmatch(child.name) and child.is_dir() and not child.is_symlink():
                yield child.name, child


def _record(file: Path) -> dict[str, Any]:
    """What can be read of a record, of whatever version; a link is not followed."""
    content = None if file.is_symlink() else read_json(file)
    return content if isinstance(content, dict) else {}


def _files(folder: Path) -> list[os.stat_result]:
    found = []
    for file in [folder, *folder.rglob("*")]:
        with contextlib.suppress(OSError):  # a run may rename or delete it at this moment
            found.append(file.lstat())
    return found
