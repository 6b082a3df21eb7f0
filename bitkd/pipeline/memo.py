"""Plans that were made before: until something changes that a plan was made from, `bitkd plan` needs no model, no rows and
none of the libraries that take seconds to load.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bitkd.config.schema import DEMO, Config
from bitkd.pipeline.graph import digest
from bitkd.store.artifacts import Store, read_json, store_root, write_json

PACKAGE = Path(__file__).resolve().parent.parent
LIBRARIES = ("numpy", "torch", "transformers", "tokenizers", "datasets")


def recall_plan(config: Config) -> list[dict[str, Any]] | None:
    """The stages of an equal plan; null where none was made, or anything has changed since."""
    found = read_json(_file(config))
    if found is None or found["inputs"] != inputs_of(config):
        return None
    store = Store(store_root(config))
    keys = {row["name"]: row["key"] for row in found["stages"]}
    for row in found["stages"]:
        # The steps of a stage on augmented rows are known when the rows are there.
        if row["steps"] is None and store.finished(keys[row["inputs"]["data"]]):
            return None
    return found["stages"]


def keep_plan(config: Config, stages: list[dict[str, Any]], inputs: str | None) -> None:
    """Note a plan for `recall_plan`.  inputs: `inputs_of` the configuration, from before the plan was made."""
    if inputs is not None:
        file = _file(config)
        with contextlib.suppress(OSError):  # a store that can only be read
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, {"inputs": inputs, "stages": stages})


def _file(config: Config) -> Path:
    return store_root(config).parent / "cache" / "plans" / f"{digest(asdict(config))}.json"


def inputs_of(config: Config) -> str | None:
    """Changes with the code, the libraries, and size or time of any file that a plan reads; null where the hub is read, whose
    content may change without a sign here.
    """
    files: list[Path] = [*PACKAGE.rglob("*.py")]  # the demo's files are made by them
    if not Path(config.model.pretrained).expanduser().is_dir() and config.model.pretrained != DEMO:
        return None
    for name in _folders(config):
        path = Path(name).expanduser()
        if not path.exists():
            return None
        files += path.rglob("*") if path.is_dir() else [path]
    if config.data.dir and config.data.dir != DEMO:
        names = [config.task.files.train, *config.task.files.dev.values()]
        root = Path(config.data.dir).expanduser()
        files += [folder / name for folder in (root, root / config.task.files.folder) for name in names]
    elif not config.data.dir and config.task.name:
        return None
    if config.data.hub_corpus.path:
        return None
    return digest(
        [[str(file.absolute()), *_state(file)] for file in sorted(files)] + [version(name) for name in LIBRARIES]
    )


def _folders(config: Config) -> Iterator[str]:
    """Folders and files that are read whole, as the configuration names them."""
    spec = config.task.augmentation
    given = [stage.checkpoint for stage in config.stages.values()]
    for name in (config.model.pretrained, *config.data.corpus, *given, spec.model, spec.vectors, spec.path):
        if name and name != DEMO:
            yield name


def _state(file: Path) -> tuple[int, int]:
    try:
        found = os.stat(file)
    except OSError:
        return (-1, -1)
    return (found.st_size, found.st_mtime_ns)
