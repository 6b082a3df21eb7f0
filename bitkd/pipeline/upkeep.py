"""Looking after a store: what is in it, which runs need it, whether it is whole, and what can go."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bitkd.errors import InputError
from bitkd.pipeline.record import MANIFEST, RunRecord
from bitkd.pipeline.store import METRICS_FILE, STAGE_FILE, Store, read_json

DAY = 86400


@dataclass(frozen=True)
class Entry:
    """An artifact, or the work folder of a stage that is not finished.

    runs: the runs that need it.  size: bytes.  age: days since it was last written.
    """

    key: str
    finished: bool
    title: str
    task: str
    score: float | None
    size: int
    age: float
    runs: list[str]


@dataclass(frozen=True)
class Inventory:
    """All that is in a store, the oldest entry first. working: runs in which a living process computes a stage."""

    entries: list[Entry]
    working: set[str]

    @property
    def size(self) -> int:
        return sum(entry.size for entry in self.entries)


def take_inventory(store: Store, runs: Path) -> Inventory:
    """Look through a store. `runs`: a folder of runs (`run.dir`) besides those that the store knows of."""
    if not store.root.is_dir():
        raise InputError(f"{store.root} is no store; name one with run.dir= or run.store=")
    needed = _needed(store, runs)
    found = []
    for key, folder in [*_children(store.root), *_children(store.root / ".work")]:
        finished = folder.parent == store.root
        stage, metrics = (read_json(folder / name) or {} for name in (STAGE_FILE, METRICS_FILE))
        found.append(
            Entry(
                key=key,
                finished=finished,
                title=stage.get("title", "unreadable" if finished else "unfinished"),
                task=stage.get("task", ""),
                score=metrics.get("score"),
                size=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
                age=(time.time() - _written(folder)) / DAY,
                runs=needed.get(key, []),
            )
        )
    found.sort(key=lambda entry: (-entry.age, entry.key))
    return Inventory(found, {run for key in store.locked() for run in needed.get(key, [])})


def prune(
    store: Store,
    inventory: Inventory,
    days: float | None = None,
    size: int | None = None,
    needed_too: bool = False,
    dry: bool = False,
) -> tuple[list[Entry], list[Entry]]:
    """Remove entries, the oldest first; returns those removed (or, `dry`, to be removed) and those in use and left.

    days: only entries not written for so long.  size: only until the store has at most so many bytes.
    needed_too: also what runs need; they would compute it again.
    """
    removed, busy = [], []
    total = inventory.size
    for entry in inventory.entries:
        if size is not None and total <= size:
            break
        if (entry.runs and not needed_too) or (days is not None and entry.age < days):
            continue
        lock = store.lock(entry.key)
        if inventory.working & {*entry.runs} or lock.wait(0) != "held":
            busy.append(entry)
            continue
        try:
            if not dry and entry.finished:
                store.remove(entry.key)
            elif not dry:
                store.drop_work(entry.key)
        finally:
            lock.release()
        removed.append(entry)
        total -= entry.size
    return removed, busy


def _needed(store: Store, runs: Path) -> dict[str, list[str]]:
    """Key -> the runs whose present plan, or whose links, it stands in."""
    folders = {Path(folder) for folder in store.known_runs()} | {file.parent for file in runs.glob(f"*/*/{MANIFEST}")}
    needed: dict[str, list[str]] = {}
    for folder in sorted(folders):
        if not (folder / MANIFEST).is_file():
            continue  # a run that was deleted needs nothing
        record = RunRecord.read(folder)
        for key in {*record.info.get("planned", {}).values(), *record.stages.values()}:
            needed.setdefault(key, []).append(f"{folder.parent.name}/{folder.name}")
    return needed


def _children(folder: Path) -> Iterator[tuple[str, Path]]:
    if folder.is_dir():
        yield from ((child.name, child) for child in folder.iterdir() if child.name[0] != "." and child.is_dir())


def _written(folder: Path) -> float:
    return max(file.stat().st_mtime for file in (folder, *folder.rglob("*")))
