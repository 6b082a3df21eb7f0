"""The folder of one run: its manifest, its resolved configuration, its logs, links into the store."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from bitkd.errors import InputError
from bitkd.files import temporary_name, write_json
from bitkd.store.artifacts import Artifact, Store, read_artifact
from bitkd.store.records import RunManifest, parse_record

MANIFEST = "manifest.json"


@dataclass
class RunFolder:
    """The folder of a run."""

    folder: Path
    manifest: RunManifest | None = None
    """None until the run has begun."""

    @classmethod
    def open(cls, runs: Path, task: str, name: str) -> "RunFolder":
        """The folder `<runs>/<task>/<name>`, whether or not the run has begun."""
        folder = runs.expanduser().resolve() / task / name
        return cls.read(folder) if (folder / MANIFEST).is_file() else cls(folder)

    @classmethod
    def read(cls, folder: Path) -> "RunFolder":
        """The folder of a run that has begun.

        Raises InputError if it is no run, or its manifest is damaged or of another version.
        """
        file = folder / MANIFEST
        try:
            text = file.read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise InputError(
                f"{folder} is no run: it has no {MANIFEST}; name a folder <run.dir>/<task>/<run.name>"
            ) from error
        advice = "delete it and run again: finished stages are kept"
        return cls(folder, parse_record(RunManifest, text, file, advice))

    @property
    def stages(self) -> dict[str, str]:
        """Finished stage -> key of its artifact, in graph order."""
        return self.manifest.artifacts if self.manifest else {}

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    def begin(self, manifest: RunManifest, config_yaml: str) -> None:
        """Write the manifest and the configuration. Stages that are already finished stay in the manifest if the plan
        has them.

        Raises InputError if the folder cannot be written.
        """
        before = {name: self.stages[name] for name in manifest.planned if name in self.stages}
        self.manifest = replace(manifest, artifacts=before)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "config.yaml").write_text(config_yaml, encoding="utf-8")
            self._write(self.manifest)
        except OSError as error:
            raise InputError(
                f"{self.folder} is not writable ({error.strerror}); choose another folder with run.dir="
            ) from error

    def finish(self, stage: str, key: str, artifact_path: Path, order: list[str]) -> None:
        """Record that a stage is finished, and link its artifact.  order: all stages, in graph order."""
        assert self.manifest, "begin() comes first"
        finished = self.stages | {stage: key}
        self.manifest = replace(self.manifest, artifacts={name: finished[name] for name in order if name in finished})
        link = self.folder / stage
        temporary = self.folder / temporary_name(f".{stage}")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(os.path.relpath(artifact_path, self.folder))
        os.replace(temporary, link)
        self._write(self.manifest)

    def artifacts(self) -> dict[str, Artifact]:
        """The finished stages' artifacts, in graph order. Raises InputError if one is missing or damaged."""
        return {name: read_artifact(self.folder / name) for name in self.stages}

    def _write(self, manifest: RunManifest) -> None:
        write_json(self.folder / MANIFEST, manifest.as_data())


def state_of(store: Store, run_folder: RunFolder, stage: str, key: str) -> str:
    """State of a stage: `done`, `partial` (interrupted), `stale` (finished with other settings or data), or `todo`."""
    if store.finished(key):
        return "done"
    if store.has_checkpoint(key):
        return "partial"
    return "stale" if stage in run_folder.stages else "todo"
