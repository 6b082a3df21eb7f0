"""Reads text files: UTF-8, plain or compressed with gzip (by their content, whatever their name)."""

import gzip
import zlib
from collections.abc import Iterator
from io import BufferedReader, FileIO
from pathlib import Path

from bitkd.errors import InputError
from bitkd.files import describe_content

GZIP = b"\x1f\x8b"
HEAD = 65536
"""Bytes at the start of a file that are looked at before it is read; fewer of a pipe."""


class Malformed(ValueError):
    """One row that cannot be read; the message says where it is and why."""

    text = ""
    """Of a line that is not UTF-8: the line with its end, the wrong bytes replaced."""


def read_lines(file: Path, keep_end: bool = False) -> Iterator[tuple[int, str | Malformed]]:
    """Numbered lines of a UTF-8 file. Only \\n and \\r\\n end a line: a text may contain Unicode's other separators.

    Raises InputError if the file cannot be read, is no UTF-8 text, or has carriage returns alone as line ends.
    """
    for number, raw in enumerate(_read(file), start=1):
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            byte = error.object[error.start]  # counted after a byte-order mark
            fault = Malformed(f"{file}:{number}: byte {error.start} is not UTF-8 (0x{byte:02x})")
            fault.text = raw.decode("utf-8-sig" if number == 1 else "utf-8", errors="replace")
            yield number, fault
            continue
        yield number, text if keep_end else text.rstrip("\n").removesuffix("\r")


def _read(file: Path) -> Iterator[bytes]:
    """The lines of a file as bytes. It is read once and from its start to its end, so that it may be a pipe."""
    try:
        with BufferedReader(FileIO(file), HEAD) as raw:
            packed = raw.peek(len(GZIP)).startswith(GZIP)
            stream = gzip.GzipFile(fileobj=raw) if packed else raw
            _check_head(file, stream.peek(HEAD))
            yield from stream
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{file} is damaged: gzip cannot read it to its end ({error}); compress it again") from error
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror or error})") from error


def _check_head(file: Path, head: bytes) -> None:
    """Raise InputError if the first bytes of a file show that it is no UTF-8 text."""
    if found := describe_content(head):
        raise InputError(f"{file} is no text in UTF-8: it is {found}")
    if b"\0" in head.split(b"\n", 1)[0]:
        raise InputError(f"{file} is no text in UTF-8: its first line has zero bytes; save it as UTF-8 (is it UTF-16?)")
    if b"\r" in head.split(b"\n", 1)[0].removesuffix(b"\r"):
        raise InputError(
            f"{file}: its lines end in carriage returns alone, as an old Mac's; convert it, such as by "
            r"tr '\r' '\n' < OLD > NEW"
        )
