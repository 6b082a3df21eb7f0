"""The content-addressed artifact store: a folder per fingerprint, complete or absent, never torn."""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitkd.errors import InputError
from bitkd.files import checksum, is_alive, read_json, write_json
from bitkd.store.lock import Lock

STAGE_FILE = "stage.json"
METRICS_FILE = "metrics.json"

_REQUIRED = {STAGE_FILE: ("kind", "seconds"), METRICS_FILE: ("score",)}

_RUN = "run-"


@dataclass(frozen=True)
class Artifact:
    """A finished stage on disk."""

    path: Path
    stage: dict[str, Any]
    metrics: dict[str, Any]


class Store:
    """Artifacts by key (kind and fingerprint) under `root`, and beside them the work folders of unfinished stages."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).expanduser().resolve()

    def prepare(self) -> None:
        """Create the folders, sweep what dead processes left, and make sure that artifacts can be written."""
        try:
            for folder in (self.root, self._temporary):
                folder.mkdir(parents=True, exist_ok=True)
            probe = self._temporary / f"probe-{uuid.uuid4().hex}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise InputError(
                f"{self.root} is not writable ({error.strerror}); choose another folder with run.dir= or run.store="
            ) from error
        self._sweep()

    @property
    def _temporary(self) -> Path:
        return self.root / ".tmp"

    def path(self, key: str) -> Path:
        """Where the artifact of `key` is, or will be."""
        return self.root / key

    def work(self, key: str) -> Path:
        """Folder of the checkpoints of a stage that is not finished."""
        return self.root / ".work" / key

    def lock(self, key: str) -> Lock:
        """The right to compute the artifact of `key`; whoever has it may use its work folder."""
        return Lock(self.root, key)

    def locked(self) -> list[str]:
        """Keys whose locks are held; one of another machine counts as held until somebody takes it over."""
        locks = (Lock(self.root, file.name) for file in (self.root / ".locks").glob("[!.]*") if file.suffix != ".beat")
        return [lock.file.name for lock in locks if lock.is_held()]

    def finished(self, key: str) -> bool:
        """Whether an artifact stands there; its checksum is `verify`'s business."""
        return (self.path(key) / STAGE_FILE).is_file()

    def begun(self, key: str) -> bool:
        """Whether something is kept of a stage that was cut inside."""
        return any(any(self.work(key).glob(pattern)) for pattern in ("step-*.ckpt", "shard-*.arrow"))

    def damage(self, key: str) -> str | None:
        """What is wrong with a finished artifact: null when its files can be read and its checksum holds."""
        try:
            stage = self.load(key).stage
            found = {name: checksum(self.path(key) / name) for name in stage["checksums"]}
        except (OSError, ValueError, KeyError) as error:
            return f"{self.path(key)} cannot be read ({error})"
        for name, expected in stage["checksums"].items():
            if found[name] != expected:
                return f"{self.path(key) / name} has checksum {found[name][:12]}…, its record says {expected[:12]}…"
        return None

    def load(self, key: str) -> Artifact:
        """The records of a finished artifact."""
        return read_artifact(self.path(key))

    def publish(self, key: str, write: Any, stage: dict[str, Any], metrics: dict[str, Any]) -> Artifact:
        """Make the artifact of `key` visible in one step.

        write: called with a temporary folder, puts model and tokenizer there. stage.json is written last, then the
        folder is renamed into place; an artifact that another process published meanwhile is kept.
        """
        folder = self._temporary / f"{key}.{socket.gethostname()}.{os.getpid()}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write(folder)
        write_json(folder / METRICS_FILE, metrics)
        checksums = {file.name: checksum(file) for file in sorted(folder.iterdir())}
        write_json(folder / STAGE_FILE, stage | {"checksums": checksums})
        _sync(folder)
        try:
            os.rename(folder, self.path(key))
        except OSError:
            if not self.finished(key):
                raise
            shutil.rmtree(folder)
        self.drop_work(key)
        return self.load(key)

    def register(self, run: Path, keys: list[str]) -> Lock:
        """Remember a run that uses this store, wherever its folder is, and what it needs, so that `gc` leaves that.

        Returns a lock that is held while the run lives.
        """
        name = hashlib.sha256(str(run).encode()).hexdigest()[:20]
        self._runs.mkdir(exist_ok=True)
        write_json(self._runs / name, {"folder": str(run), "host": socket.gethostname(), "keys": keys})
        living = Lock(self.root, f"{_RUN}{name}-{uuid.uuid4().hex}")
        living.wait(0)
        return living

    def registered(self) -> list[tuple[str, str, list[str]]]:
        """Folder, machine and keys of each run that was registered; some may be deleted since."""
        found = (read_json(file) for file in sorted(self._runs.glob("[!.]*")))
        return [(run["folder"], run["host"], run["keys"]) for run in found if run]

    def living_runs(self) -> list[str]:
        """Folders of the runs that some process works on."""
        names = {key.removeprefix(_RUN)[:20] for key in self.locked() if key.startswith(_RUN)}
        return [run["folder"] for name in names if (run := read_json(self._runs / name))]

    def exists(self) -> bool:
        """Whether the folder is a store, and not just any."""
        return self._temporary.is_dir()

    @property
    def _runs(self) -> Path:
        return self.root / ".runs"

    def drop_work(self, key: str) -> None:
        """Delete what is left of a finished stage's way there."""
        shutil.rmtree(self.work(key), ignore_errors=True)

    def remove(self, key: str) -> None:
        """Take an artifact out of sight, then delete it."""
        self._temporary.mkdir(parents=True, exist_ok=True)
        grave = self._temporary / f"removed-{key}.{socket.gethostname()}.{os.getpid()}"
        shutil.rmtree(grave, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            os.rename(self.path(key), grave)
            shutil.rmtree(grave)

    def _sweep(self) -> None:
        for file in (self.root / ".locks").glob(f"{_RUN}*"):
            if file.suffix != ".beat" and not Lock(self.root, file.name).is_held():
                file.unlink(missing_ok=True)
                file.with_name(f"{file.name}.beat").unlink(missing_ok=True)
        for folder in self._temporary.iterdir():
            name, _, pid = folder.name.rpartition(".")
            if name.endswith(f".{socket.gethostname()}") and pid.isdigit() and not is_alive(int(pid)):
                shutil.rmtree(folder, ignore_errors=True)


def read_artifact(path: Path | str) -> Artifact:
    """The records of the artifact in a folder; InputError where it is none or is damaged."""
    path = Path(path)
    records = []
    for name, required in _REQUIRED.items():
        try:
            content = json.loads((path / name).read_text(encoding="utf-8"))
            if absent := [key for key in required if not isinstance(content, dict) or key not in content]:
                raise ValueError(f"it has no {', '.join(absent)}")
            records.append(content)
        except FileNotFoundError as error:
            raise InputError(f"{path} is no finished artifact: it has no {name}; run the stage again") from error
        except ValueError as error:
            raise InputError(f"{path / name} is damaged ({error}); run the stage again") from error
    return Artifact(path, *records)


def _sync(folder: Path) -> None:
    """Force the files to disk before the rename makes them visible: a power cut must not leave an empty model."""
    for file in folder.iterdir():
        with open(file, "rb") as stream:
            os.fsync(stream.fileno())
