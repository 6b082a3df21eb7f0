"""The content-addressed artifact store: a folder per fingerprint, complete or absent, never torn."""

import contextlib
import hashlib
import os
import shutil
import socket
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from bitkd.errors import InputError
from bitkd.files import checksum, is_alive, read_json, write_json
from bitkd.store.lock import Lock
from bitkd.store.records import MetricsRecord, StageRecord, parse_record

STAGE_FILE = "stage.json"
METRICS_FILE = "metrics.json"
WEIGHTS_FILE = "model.safetensors"
PREDICTIONS_FILE = "predictions.safetensors"

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
        """What is wrong with a finished artifact; None if its files can be read and their checksums are right."""
        try:
            expected_sums = self.load(key).stage.checksums
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
        """The records of a finished artifact."""
        return read_artifact(self.path(key))

    def publish(
        self, key: str, write: Callable[[Path], object], stage: StageRecord, metrics: MetricsRecord
    ) -> Artifact:
        """Make the artifact of `key` visible in one step.

        write: called with a temporary folder, puts model and tokenizer there. stage.json is written last, then the
        folder is renamed into place; an artifact that another process published meanwhile is kept.
        """
        folder = self._temporary / f"{key}.{socket.gethostname()}.{os.getpid()}"
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
    """The records of the artifact in a folder. Raises InputError if there is none, or a record is damaged."""
    path = Path(path)
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
    """Force the files to disk before the rename makes them visible: a power cut must not leave an empty model."""
    for file in folder.iterdir():
        with open(file, "rb") as stream:
            os.fsync(stream.fileno())
