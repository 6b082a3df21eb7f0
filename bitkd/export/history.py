"""How an artifact was made, as far as the folders around it tell."""

from dataclasses import dataclass, field
from pathlib import Path

from bitkd.errors import InputError
from bitkd.store.artifacts import KEY, STAGE_FILE, Artifact, Store, read_artifact
from bitkd.store.run_folder import MANIFEST, RunFolder


@dataclass(frozen=True)
class History:
    """The stages that led to an artifact."""

    stages: list[Artifact] = field(default_factory=list)
    """Those that are still in its store, the artifact itself last; empty for a folder that no stage made."""

    complete: bool = False
    """Whether no earlier stage is absent."""

    teacher: Artifact | None = None
    """The model that taught the last stage, if it is still in the store."""

    pipeline: str | None = None
    """Of the run, if the artifact was named by its place in a run's folder."""

    run_seed: int | None = None


def read_history(named: Path) -> History:
    """The history of an artifact.

    named: its folder, as it was given: in a store, or its place in a run's folder. Elsewhere only the artifact itself is known.
    """
    folder = named.resolve()
    if not (folder / STAGE_FILE).is_file():
        return History()
    store = Store(folder.parent)
    found, absent = {folder.name: read_artifact(folder)}, set[str]()
    stages: list[Artifact] = []

    def visit(key: str) -> None:
        """Add an artifact behind all that it was made of."""
        for other in found[key].stage.inputs.values():
            if other in found or not KEY.fullmatch(other):  # `pretrained` has no folder
                continue
            try:
                found[other] = store.load(other)
            except InputError:
                absent.add(other)
            else:
                visit(other)
        stages.append(found[key])

    visit(folder.name)
    run = _run_of(named)
    manifest = run.manifest if run else None
    return History(
        stages,
        not absent,
        found.get(stages[-1].stage.inputs.get("teacher", "")),
        manifest.pipeline if manifest else None,
        manifest.seed if manifest else None,
    )


def _run_of(named: Path) -> RunFolder | None:
    """The run in whose folder an artifact was named."""
    parent = named.expanduser().absolute().parent
    try:
        return RunFolder.read(parent) if (parent / MANIFEST).is_file() else None
    except InputError:  # the artifact itself is whole
        return None


def quantized_stages(named: Path) -> list[str]:
    """Names of the quantized stages of the run in whose folder an artifact was named."""
    run = _run_of(named)
    names = []
    for name in run.stages if run else []:
        try:
            size = read_artifact(named.absolute().parent / name).stage.size
        except InputError:
            continue
        if size is not None and not size.precision.startswith("W32"):
            names.append(name)
    return names
