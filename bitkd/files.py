"""Small files of plain data: written whole or not at all, read, hashed."""

import hashlib
import json
import os
import socket
from pathlib import Path
from typing import Any


def write_file(file: Path, content: str | bytes) -> None:
    """Write a file so that readers see the old one or the new one, never half of either."""
    data = content.encode() if isinstance(content, str) else content
    # With the host's name: two containers that share a disk may have processes of equal numbers.
    temporary = file.with_name(f".{file.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(file: Path, content: Any) -> None:
    """Write plain data as `write_file` does."""
    write_file(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(file: Path) -> Any:
    """The content of a JSON file; None if there is none or it is damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def checksum(file: Path | str) -> str:
    """SHA-256 of a file's content."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest(content: Any) -> str:
    """A 20-digit hash of plain data, independent of the order of keys."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def is_alive(pid: int) -> bool:
    """Whether a process of this machine exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it belongs to another user
        return True
    return True
