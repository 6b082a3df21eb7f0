"""A finished run, as a comparison reads it."""

from pathlib import Path

from bitkd.compare.load import check_complete, make_run
from bitkd.compare.runs import Run, check_numbers
from bitkd.errors import InputError
from bitkd.files import checksum
from bitkd.store.artifacts import WEIGHTS_FILE, Artifact
from bitkd.store.run_folder import RunFolder


def read_finished(folder: Path, to_compare: bool = False) -> Run:
    """The run in a folder; InputError where it is not finished, or its records are missing or damaged.

    to_compare: also where they lack what a comparison needs: a student of the task, and what older versions did not record.
    """
    record = RunFolder.read(folder)
    assert record.manifest
    info, planned = record.manifest.as_data(), record.manifest.planned
    missing = [name for name, key in planned.items() if record.stages.get(name) != key]
    if missing or not planned:
        raise InputError(
            f"{folder} is not finished: {', '.join(missing) or 'every stage'} missing or of other settings; run it to the end"
        )
    artifacts = record.artifacts()
    stages = {
        name: {"path": artifact.path, "stage": artifact.stage.as_data(), "metrics": artifact.metrics.as_data()}
        for name, artifact in artifacts.items()
    }
    if to_compare:
        for artifact in artifacts.values():
            _check_contents(artifact)
        check_complete(str(folder), info, stages)
    run = make_run(folder.resolve().name, info, stages)
    if to_compare:
        try:
            check_numbers(run)
        except (ValueError, TypeError) as error:
            raise InputError(f"{folder}: its records are damaged ({error}); run it again") from error
    return run


def _check_contents(artifact: Artifact) -> None:
    """InputError where a file of an artifact is another than it was written; the weights, which take long, are left out."""
    for name, expected in artifact.stage.checksums.items():
        file = artifact.path / name
        if name != WEIGHTS_FILE and file.is_file() and checksum(file) != expected:
            raise InputError(f"{file} is damaged (it is another than its stage.json tells); run the stage again")
