"""Measuring the final students of a comparison as `bitkd export` writes them, each beside its teacher."""

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from bitkd.compare.arms import Arm
from bitkd.compare.exported import Exported, processor_name
from bitkd.compare.runs import Run
from bitkd.errors import InputError
from bitkd.files import checksum, digest, write_json
from bitkd.names import shown
from bitkd.store.artifacts import STAGE_FILE
from bitkd.store.records import check_values

CACHE = "cache"
"""Folder beside a store, see `bitkd.config.schema.cache_root`; measurements are kept in a folder of it."""

PACKAGE = Path(__file__).resolve().parent.parent
ROOMS = ("compare", "engine", "models", "quant")
"""Code that decides a file's size and a student's speed."""

COMPILERS = ("g++", "clang++")
"""Those that `bitkd.engine.build` looks for."""

NO_LATENCY = "latency left out (--no-latency)"
NO_TEACHER = "the teacher was not measured: its artifact is not at hand"


@dataclass(frozen=True)
class _Subject:
    """A final student that can be measured."""

    arm: int
    """Its place in the comparison."""

    run: Run
    student: Path
    teacher: Path | None
    kept: Path | None
    """File of its measurement; None where none is kept."""


def measure_students(
    arms: list[Arm],
    folders: Mapping[str, Path],
    *,
    latency: bool = True,
    again: bool = False,
    tell: Callable[[str], object] = lambda text: None,
) -> list[Arm]:
    """The arms of a task with the exported file and the speed of one final student of each.

    folders: key of an artifact -> its folder, of those that are at hand; other arms keep what their records say.
    latency: also measure the speed.  again: also measure what an earlier call has kept.
    tell: gets a line before work that takes seconds.

    Measurements are kept in the folder `cache` beside the artifacts' store, if there is one, for this machine and this
    code. A student or a teacher that cannot be loaded is no error: the measurement says why it is missing. Without its
    teacher, a student is timed alone.
    """
    subjects = [one for place, arm in enumerate(arms) if (one := _subject(place, arm, folders))]
    kept = {subject.arm: None if again else _read(subject.kept, latency) for subject in subjects}
    results = {place: found for place, found in kept.items() if found}
    todo = [subject for subject in subjects if subject.arm not in results]
    if todo:
        names = ", ".join(arms[subject.arm].label for subject in todo)
        tell(f"measuring {'file and latency' if latency else 'the file'} of {names}")
        results |= _measure(todo, latency)
    for subject in todo:
        results[subject.arm] = _keep(subject, results[subject.arm], latency)
    arms = list(arms)
    for subject in subjects:
        runs = [
            replace(run, exported=results[subject.arm] if run is subject.run else None)
            for run in arms[subject.arm].runs
        ]
        arms[subject.arm] = Arm(arms[subject.arm].label, runs)
    return arms


def _subject(place: int, arm: Arm, folders: Mapping[str, Path]) -> _Subject | None:
    """The first of an arm's final students whose artifact is at hand."""
    run = next((run for run in arm.runs if run.final.key in folders), None)
    if run is None:
        return None
    student = folders[run.final.key]
    teacher = folders.get(run.teacher.key) if run.teacher else None
    cache_folder = student.resolve().parent.parent / CACHE
    kept = cache_folder / "exported"
    if (
        not cache_folder.is_dir() or cache_folder.is_symlink() or kept.is_symlink()
    ):  # nothing is written where a link leads
        return _Subject(place, run, student, teacher, None)
    records = [
        checksum(folder / STAGE_FILE) for folder in (student, teacher) if folder
    ]  # they name the weights' checksums
    settings = {name: value for name, value in os.environ.items() if name.startswith("BITKD_")}
    compilers = [os.environ.get("CXX"), *map(shutil.which, COMPILERS)]  # without one, students are slower
    name = digest([records, processor_name(), settings, compilers, _code(), version("torch"), version("transformers")])
    return _Subject(place, run, student, teacher, kept / f"{name}.json")


def _measure(subjects: list[_Subject], latency: bool) -> dict[int, Exported]:
    """By place of the arm. Students of one teacher take turns with it and with each other."""
    groups: dict[Path | None, list[_Subject]] = {}
    for subject in subjects:
        groups.setdefault(subject.teacher.resolve() if subject.teacher else None, []).append(subject)
    return {place: found for group in groups.values() for place, found in _measure_group(group, latency).items()}


def _measure_group(group: list[_Subject], latency: bool) -> dict[int, Exported]:
    from bitkd.compare.loaded import export_and_load, load_teacher, runs_by, time_students

    models: dict[int, Any] = {}
    results: dict[int, Exported] = {}
    for subject in group:
        try:
            models[subject.arm], file_mib = export_and_load(subject.student)
            results[subject.arm] = Exported(file_mib, [], "", missing=NO_LATENCY)
        except Exception as error:  # torch and transformers raise many types
            results[subject.arm] = Exported(None, [], "", missing=_reason(error))
    if not latency or not models:
        return results
    teacher, alone = None, ""
    if group[0].teacher:
        try:
            teacher = load_teacher(group[0].teacher)
        except Exception as error:
            alone = f"the teacher was {_reason(error)}"
    try:
        speeds = time_students({str(place): model for place, model in models.items()}, teacher)
        by = {place: runs_by(model) for place, model in models.items()}
    except Exception as error:
        return results | {place: replace(results[place], missing=_reason(error)) for place in models}
    machine = f"{processor_name()}, one thread"
    for subject in group:
        if (place := subject.arm) in models:
            missing = NO_TEACHER if subject.run.teacher and not subject.teacher else alone
            results[place] = Exported(results[place].file_mib, speeds[str(place)], machine, by[place], missing)
    return results


def _reason(error: Exception) -> str:
    """Why something could not be measured, in one line."""
    if isinstance(error, MemoryError):
        return "not measured: there is not enough memory"
    kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
    return f"not measured: {shown(kind + str(error).strip().partition(chr(10))[0], 200)}"


def _read(file: Path | None, latency: bool) -> Exported | None:
    """What was kept in a file; None if that is less than what is asked for."""
    try:
        found = TypeAdapter(Exported).validate_json(file.read_bytes(), strict=True) if file else None
        check_values(asdict(found) if found else None, "it")
    except (OSError, ValueError):  # nothing was kept, or it is damaged
        return None
    return found if found and found.file_mib is not None and (found.speeds or not latency) else None


def _keep(subject: _Subject, found: Exported, latency: bool) -> Exported:
    """Keep what was found. If that has no latency because none was asked for, it gets the one that was kept before."""
    if subject.kept is None or found.file_mib is None:
        return found
    before = _read(subject.kept, latency=True)
    if before and not latency:
        found = replace(before, file_mib=found.file_mib)
    if found.missing in ("", NO_LATENCY, NO_TEACHER):  # others are failures, which may pass
        with contextlib.suppress(OSError):  # a folder that cannot be written
            subject.kept.parent.mkdir(exist_ok=True)
            write_json(subject.kept, asdict(found))
    return found


@cache
def _code() -> str:
    """Changes with the code that decides a file's size and a student's speed."""
    files = sorted(file for room in ROOMS for file in (PACKAGE / room).rglob("*") if file.suffix in (".py", ".cpp"))
    return digest([checksum(file) for file in files])
