"""The content-addressed artifact store: one folder for each fingerprint, complete or absent."""

import contextlib
import hashlib
import os
import re
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from stat import S_ISLNK, S_ISREG
from typing import Any

from bitkd.errors import InputError
from bitkd.files import checksum, is_left_over, read_json, temporary_name, write_json
from bitkd.names import is_name, shown
from bitkd.store.lock import Lock
from bitkd.store.records import MetricsRecord, StageRecord, parse_record

STAGE_FILE = "stage.json"
METRICS_FILE = "metrics.json"
WEIGHTS_FILE = "model.safetensors"
PREDICTIONS_FILE = "predictions.safetensors"

KEY = re.compile(r"[a-z][a-z0-9_]*-[0-9a-f]{20}")
"""Names of artifacts; other folders in the store are ignored."""

_RUN = "run-"


@dataclass(frozen=True)
class Artifact:
    """A finished stage on disk."""

    path: Path
    stage: StageRecord
    metrics: MetricsRecord


class Store:
    """Artifacts by key (kind and fingerprint) under `root`, and beside them the work folders of unfinished stages."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).expanduser().resolve()

    def prepare(self) -> None:
        """Create the folders, delete what dead processes left, and check that artifacts can be written.

        Raises InputError if the folder is not writable.
        """
        for name in (".tmp", ".work", ".locks", ".runs"):
            if (self.root / name).is_symlink():
                raise InputError(
                    f"{self.root / name} is a link, so that bitkd would write elsewhere; delete it, or set another run.store="
                )
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
        self._delete_leftovers()
        for entry in (self.root / ".work").rglob("*"):
            if entry.is_symlink():  # a checkpoint would be written where it leads
                entry.unlink(missing_ok=True)

    @property
    def _temporary(self) -> Path:
        return self.root / ".tmp"

    def path(self, key: str) -> Path:
        """Folder of the artifact of `key`, whether or not it exists."""
        return self.root / key

    def work(self, key: str) -> Path:
        """Folder for the checkpoints of an unfinished stage."""
        return self.root / ".work" / key

    def lock(self, key: str) -> Lock:
        """The right to compute the artifact of `key` and to use its work folder."""
        return Lock(self.root, key)

    def locked(self) -> list[str]:
        """Keys whose locks are held; a lock of another machine counts as held for a long time after its last heartbeat."""
        return [lock.file.name for lock in self._locks("[!.]*") if lock.is_held()]

    def _locks(self, pattern: str) -> Iterator[Lock]:
        files = (self.root / ".locks").glob(pattern)
        yield from (Lock(self.root, file.name) for file in files if file.suffix != ".beat")

    def finished(self, key: str) -> bool:
        """Whether the artifact exists; its checksums are not checked (see `find_damage`)."""
        return (self.path(key) / STAGE_FILE).is_file()

    def has_checkpoint(self, key: str) -> bool:
        """Whether an interrupted stage left something to resume from."""
        return any(any(self.work(key).glob(pattern)) for pattern in ("step-*.ckpt", "shard-*.arrow"))

    def saved_step(self, key: str) -> int | None:
        """The optimizer step that an interrupted stage resumes from; None if it has no checkpoint."""
        steps = (re.fullmatch(r"step-(\d+)\.ckpt", file.name) for file in self.work(key).glob("step-*.ckpt"))
        return max((int(found[1]) for found in steps if found), default=None)

    def find_damage(self, key: str) -> str | None:
        """What is wrong with a finished artifact; None if its files can be read and their checksums are right."""
        if foreign := find_foreign(self.path(key)):
            return foreign
        try:
            expected_sums = self.load(key).stage.checksums
            if odd := next((name for name in expected_sums if not is_name(name)), None):
                return f"{self.path(key)} cannot be read ({STAGE_FILE} names the file {shown(odd)})"
            found = {name: checksum(self.path(key) / name) for name in expected_sums}
        except (OSError, InputError) as error:
            return f"{self.path(key)} cannot be read ({error})"
        if METRICS_FILE not in expected_sums:
            return f"{self.path(key)} cannot be read ({STAGE_FILE} has no checksums)"
        for name, expected in expected_sums.items():
            if found[name] != expected:
                return f"{self.path(key) / name} has checksum {found[name][:12]}…, its record says {expected[:12]}…"
        return None

    def load(self, key: str) -> Artifact:
        """The records of a finished artifact. Raises InputError, see `read_artifact`."""
        return read_artifact(self.path(key))

    def publish(
        self, key: str, write: Callable[[Path], object], stage: StageRecord, metrics: MetricsRecord
    ) -> Artifact:
        """Make the artifact of `key` visible in one step, with the checksums of its files in stage.json.

        write: called with a temporary folder, where it puts model and tokenizer. stage.json is written last, then the
        folder is renamed. If another process has published the artifact meanwhile, that one is kept.
        """
        folder = self._temporary / temporary_name(key)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write(folder)
        write_json(folder / METRICS_FILE, metrics.as_data())
        checksums = {file.name: checksum(file) for file in sorted(folder.iterdir())}
        write_json(folder / STAGE_FILE, replace(stage, checksums=checksums).as_data())
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
        """Record that the run in folder `run` needs `keys`, so that `gc` keeps them wherever the run folder is.

        Returns a lock; hold it while the run is active.
        """
        name = hashlib.sha256(str(run).encode()).hexdigest()[:20]
        self._runs.mkdir(exist_ok=True)
        write_json(self._runs / name, {"folder": str(run), "host": socket.gethostname(), "keys": keys})
        active = Lock(self.root, f"{_RUN}{name}-{uuid.uuid4().hex}")
        active.wait(0)
        return active

    def registered(self) -> list[tuple[str, str, list[str]]]:
        """Folder, machine and keys of each registered run; the folder may have been deleted since."""
        found = (self._registration(file.name) for file in sorted(self._runs.glob("[!.]*")))
        return [(run["folder"], run["host"], run["keys"]) for run in found if run]

    def active_runs(self) -> list[str]:
        """Folders of the runs that some process is working on."""
        names = {key.removeprefix(_RUN)[:20] for key in self.locked() if key.startswith(_RUN)}
        return [run["folder"] for name in names if (run := self._registration(name))]

    def _registration(self, name: str) -> dict[str, Any] | None:
        """What `register` wrote; None if it is damaged."""
        run = read_json(self._runs / name)
        if not isinstance(run, dict) or not isinstance(run.get("keys"), list):
            return None
        texts = [run.get("folder"), run.get("host"), *run["keys"]]
        return run if all(isinstance(text, str) for text in texts) else None

    def exists(self) -> bool:
        """Whether `root` is a store, as opposed to some other folder."""
        return self._temporary.is_dir()

    @property
    def _runs(self) -> Path:
        return self.root / ".runs"

    def drop_work(self, key: str) -> None:
        """Delete the checkpoints of a stage."""
        shutil.rmtree(self.work(key), ignore_errors=True)

    def remove(self, key: str) -> None:
        """Move an artifact away, then delete it, so that nobody sees it half deleted."""
        self._temporary.mkdir(parents=True, exist_ok=True)
        trash = self._temporary / temporary_name(f"removed-{key}")
        shutil.rmtree(trash, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            os.rename(self.path(key), trash)
            trash.unlink() if trash.is_symlink() else shutil.rmtree(trash)

    def _delete_leftovers(self) -> None:
        for lock in self._locks(f"{_RUN}*"):
            if not lock.is_held():
                lock.file.unlink(missing_ok=True)
                lock.beat.unlink(missing_ok=True)
        for folder in self._temporary.iterdir():
            if is_left_over(folder.name):
                shutil.rmtree(folder, ignore_errors=True)


def find_foreign(folder: Path) -> str | None:
    """What in an artifact's folder is no plain file of its own, in words; None if there is nothing, or it is no artifact.

    bitkd writes only plain files. A link could lead to any file of the reader's.
    """
    if KEY.fullmatch(folder.name) and folder.is_symlink():
        return f"{folder} is a link; an artifact is a folder of its own"
    if not os.path.lexists(folder / STAGE_FILE):
        return None
    try:
        modes = {name: os.lstat(folder / name).st_mode for name in os.listdir(folder)}
    except OSError as error:
        return f"{folder} cannot be read ({error.strerror})"
    for name, mode in modes.items():
        if not S_ISREG(mode):
            what = "a link" if S_ISLNK(mode) else "no plain file"
            return f"{folder / shown(name)} is {what}; an artifact has only plain files"
    return None


def read_artifact(path: Path | str) -> Artifact:
    """The records of the artifact in a folder. Raises InputError if there is none, or a record is damaged."""
    path = Path(path)
    if foreign := find_foreign(path):
        raise InputError(f"{foreign}; {_ADVICE}")
    stage = parse_record(StageRecord, _read(path, STAGE_FILE), path / STAGE_FILE, _ADVICE)
    metrics = parse_record(MetricsRecord, _read(path, METRICS_FILE), path / METRICS_FILE, _ADVICE)
    return Artifact(path, stage, metrics)


_ADVICE = "run the stage again"


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{folder} is no finished artifact: it has no {name}; {_ADVICE}") from error


def _sync(folder: Path) -> None:
    """Force the files to disk before the rename makes them visible: a power failure must not leave an empty model."""
    for file in folder.iterdir():
        with open(file, "rb") as stream:
            os.fsync(stream.fileno())
