"""The folder of one run: its manifest, its resolved configuration, its logs, links into the store."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from bitkd.errors import InputError
from bitkd.files import link_within, temporary_name, write_file, write_json
from bitkd.names import is_name, shown
from bitkd.store.artifacts import KEY, Artifact, Store, read_artifact
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
        """The folder `<runs>/<task>/<name>`, whether or not the run has begun.

        Raises InputError if a link would lead it out of `runs`, or if the file system takes its name for another one.
        """
        root = runs.expanduser().resolve()
        folder = root / task / name
        logs = folder / "logs"
        # wandb keeps links of its own in its folder (latest-run), and replaces them.
        stages = (entry for entry in logs.glob("*") if entry.is_symlink() or entry.name != "wandb")
        below = (path for entry in stages for path in (entry, *entry.rglob("*")) if path.is_symlink())
        if link := link_within(root, logs) or next(below, None):
            raise InputError(
                f"{link} is a link, and a run writes only under {root}; delete it, or set run.dir= to where it leads"
            )
        for place in (folder.parent, folder):
            _check_spelling(place)
        return cls.read(folder) if (folder / MANIFEST).is_file() else cls(folder)

    @classmethod
    def read(cls, folder: Path) -> "RunFolder":
        """The folder of a run that has begun.

        Raises InputError if it is no run, or its manifest is damaged or of another version.
        """
        file = folder / MANIFEST
        try:
            if not file.is_file():  # a pipe would be waited for
                raise FileNotFoundError(file)
            text = file.read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise InputError(
                f"{folder} is no run: it has no {MANIFEST}; name a folder <run.dir>/<task>/<run.name>"
            ) from error
        advice = "delete it and run again: finished stages are kept"
        manifest = parse_record(RunManifest, text, file, advice)
        if odd := next((name for name in (*manifest.planned, *manifest.artifacts) if not is_name(name)), None):
            raise InputError(f"{file} is damaged (it has a stage {shown(odd)}); {advice}")
        return cls(folder, manifest)

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
            write_file(self.folder / "config.yaml", config_yaml)
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
        return {name: self.artifact(name) for name in self.stages}

    def artifact(self, stage: str) -> Artifact:
        """A finished stage's artifact: what its link leads to, or a copy of it in the run's folder.

        Raises InputError if it is missing or damaged, or if the link leads to anything but the artifact that the manifest
        names.
        """
        place = self.folder / stage
        if place.is_symlink():
            target = Path(os.path.realpath(place))
            if target.name != self.stages.get(stage) or not KEY.fullmatch(target.name):
                raise InputError(
                    f"{place} leads to {shown(str(target), 200)}, which is not the artifact that the run's {MANIFEST} names; "
                    "delete the link and run again"
                )
        return read_artifact(place)

    def _write(self, manifest: RunManifest) -> None:
        write_json(self.folder / MANIFEST, manifest.as_data())


def _check_spelling(folder: Path) -> None:
    """Raise InputError if the file system takes a folder's name for another one, as many ignore case."""
    if folder.exists() and folder.name not in (names := os.listdir(folder.parent)):
        same = next((name for name in names if name.casefold() == folder.name.casefold()), "another name")
        raise InputError(
            f"{folder} is {shown(same)} on this file system, which takes both names for one; use that name, or one that "
            "differs in more than case"
        )


def state_of(store: Store, run_folder: RunFolder, stage: str, key: str) -> str:
    """State of a stage: `done`, `partial` (interrupted), `stale` (finished with other settings or data), or `todo`."""
    if store.finished(key):
        return "done"
    if store.has_checkpoint(key):
        return "partial"
    return "stale" if stage in run_folder.stages else "todo"
