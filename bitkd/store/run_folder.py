"""What one run leaves behind: its manifest, its resolved configuration, its logs, links into the store."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitkd.errors import InputError
from bitkd.files import write_json
from bitkd.store.artifacts import Artifact, Store, read_artifact

MANIFEST = "manifest.json"


@dataclass
class RunRecord:
    """A run folder. `stages`: stage name -> artifact key, in graph order, of what is finished."""

    folder: Path
    stages: dict[str, str] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, runs: Path, task: str, name: str) -> "RunRecord":
        """The record of `<runs>/<task>/<name>`, empty where there is none yet."""
        folder = runs.expanduser().resolve() / task / name
        return cls.read(folder) if (folder / MANIFEST).is_file() else cls(folder)

    @classmethod
    def read(cls, folder: Path) -> "RunRecord":
        """An existing record; InputError where the folder is no run or its manifest is damaged."""
        file = folder / MANIFEST
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            return cls(folder, dict(content.pop("artifacts")), content)
        except FileNotFoundError as error:
            raise InputError(
                f"{folder} is no run: it has no {MANIFEST}; name a folder <run.dir>/<task>/<run.name>"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{file} is damaged ({error}); delete it and run again: finished stages are kept"
            ) from error

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    def begin(self, info: dict[str, Any], config: str, stages: list[str]) -> None:
        """Note what this run is; InputError where the folder cannot be written."""
        self.info = info
        self.stages = {name: key for name, key in self.stages.items() if name in stages}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "config.yaml").write_text(config, encoding="utf-8")
            self._write()
        except OSError as error:
            raise InputError(
                f"{self.folder} is not writable ({error.strerror}); choose another folder with run.dir="
            ) from error

    def finish(self, name: str, key: str, artifact: Path, order: list[str]) -> None:
        """Note that a stage is finished and link its artifact."""
        self.stages[name] = key
        self.stages = {n: self.stages[n] for n in order if n in self.stages}
        link = self.folder / name
        temporary = self.folder / f".{name}.{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(os.path.relpath(artifact, self.folder))
        os.replace(temporary, link)
        self._write()

    def artifacts(self) -> dict[str, Artifact]:
        """The finished stages' records, in graph order."""
        return {name: read_artifact(self.folder / name) for name in self.stages}

    def _write(self) -> None:
        write_json(self.folder / MANIFEST, self.info | {"artifacts": self.stages})


def state_of(store: Store, record: RunRecord, stage: str, key: str) -> str:
    """`done`, `partial` (cut inside), `stale` (finished once with other settings), or `todo`."""
    if store.finished(key):
        return "done"
    if store.begun(key):
        return "partial"
    return "stale" if stage in record.stages else "todo"
