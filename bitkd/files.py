"""Small files of plain data: written completely or not at all, read, hashed; temporary names for one process."""

import contextlib
import glob
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitkd.errors import InputError


def write_file(file: Path, content: str | bytes) -> None:
    """Write a file so that readers see the old content or the new one, never a part of one."""
    data = content.encode() if isinstance(content, str) else content
    temporary = file.with_name(temporary_name(f".{file.name}"))
    try:
        temporary.write_bytes(data)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(file: Path, content: Any) -> None:
    """Write plain data as `write_file` does."""
    write_file(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, which gets its name at the end; if the work fails, nothing is left.

    folder: absent or empty, and not `.`. Raises InputError if it is not empty at the end, or cannot be written.
    """
    temporary = folder.with_name(temporary_name(f".{folder.name}"))
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        for other in folder.parent.glob(f".{glob.escape(folder.name)}.*"):
            if is_left_over(other.name):
                shutil.rmtree(other, ignore_errors=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    try:
        yield temporary
        with writing(folder):
            os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Around what only writes a folder that a user named: an OSError there is an InputError about that folder."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror or error}); name another folder") from error


def follow_umask(file: Path) -> None:
    """Give a file the mode that `open` gives a new file: safetensors makes files that only their owner can read."""
    probe = file.with_name(temporary_name(f".{file.name}"))
    try:
        probe.touch()
        with contextlib.suppress(PermissionError):  # a file system that has no modes
            shutil.copymode(probe, file)
    finally:
        probe.unlink(missing_ok=True)


def read_json(file: Path) -> Any:
    """The content of a JSON file; None if there is none or it is damaged. A pipe is not waited for."""
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    except (OSError, ValueError, RecursionError):  # JSON of others may be nested too deeply
        return None


def link_within(root: Path, path: Path) -> Path | None:
    """The first link on the way from `root` down to `path`, which is below it; None if there is none."""
    parts = path.relative_to(root).parts
    places = [root.joinpath(*parts[: i + 1]) for i in range(len(parts))]
    return next((place for place in places if place.is_symlink()), None)


def checksum(file: Path | str) -> str:
    """SHA-256 of a file's content."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


POINTER = b"version https://git-lfs"

SIGNATURES = {
    POINTER: "a git-lfs pointer, not the file itself; fetch it with `git lfs pull`",
    b"\xff\xfe": "UTF-16; save it as UTF-8",
    b"\xfe\xff": "UTF-16; save it as UTF-8",
    b"\x1f\x8b": "compressed with gzip; unpack it",
    b"PK\x03\x04": "a zip archive (of torch.save, or a spreadsheet), by its first bytes",
    b"PAR1\x15": "a Parquet file; name it .parquet",
    b"BZh91AY&SY": "compressed with bzip2; unpack it",
    b"\xfd7zXZ": "compressed with xz; unpack it",
    b"(\xb5/\xfd": "compressed with zstandard; unpack it",
}


def describe_content(head: bytes) -> str | None:
    """What the first bytes of a file say that it is, and what to do about it; None if they say nothing."""
    return next((found for start, found in SIGNATURES.items() if head.startswith(start)), None)


def digest(content: Any) -> str:
    """A 20-digit hash of plain data, independent of the order of keys."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def temporary_name(name: str) -> str:
    """A name that no other process takes. It has the host's name: processes on a shared disk may have equal ids."""
    return f"{name}.{socket.gethostname()}.{os.getpid()}"


def is_left_over(name: str) -> bool:
    """Whether a `temporary_name` was made by a process of this machine that is gone."""
    rest, _, pid = name.rpartition(".")
    return rest.endswith(f".{socket.gethostname()}") and pid.isdigit() and not is_alive(int(pid))


def is_alive(pid: int) -> bool:
    """Whether a process of this machine exists."""
    if pid <= 0:  # which `kill` takes for groups of processes
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it belongs to another user
        return True
    return True
