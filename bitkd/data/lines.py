"""Reads text files: UTF-8, plain or compressed with gzip (by their content, whatever their name)."""

import codecs
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from bitkd.errors import InputError
from bitkd.files import describe_content

GZIP = b"\x1f\x8b"
HEAD = 65536
"""Bytes at the start of a file that are looked at before it is read."""


class Malformed(ValueError):
    """One row that cannot be read; the message says where it is and why."""


def read_lines(file: Path, keep_end: bool = False) -> Iterator[tuple[int, str | Malformed]]:
    """Numbered lines of a UTF-8 file. Only \\n and \\r\\n end a line: a text may contain Unicode's other separators.

    Raises InputError if the file cannot be read, is no UTF-8 text, or has carriage returns alone as line ends.
    """
    for number, raw in enumerate(_read(file, lines=True), start=1):
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            byte = error.object[error.start]  # counted after a byte-order mark
            yield number, Malformed(f"{file}:{number}: byte {error.start} is not UTF-8 (0x{byte:02x})")
            continue
        yield number, text if keep_end else text.rstrip("\n").removesuffix("\r")


def read_text(file: Path) -> str:
    """A whole UTF-8 file. Raises InputError if it cannot be read or is no UTF-8 text."""
    content = b"".join(_read(file, lines=False))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{file}:{line}: byte 0x{error.object[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from error


def first_character(file: Path) -> str:
    """The first byte of a text file that is no white space, as a character; empty if there is none."""
    for raw in _read(file, lines=False):
        if text := raw.removeprefix(codecs.BOM_UTF8).strip():
            return chr(text[0])
    return ""


def _read(file: Path, lines: bool) -> Iterator[bytes]:
    """The lines of a file as bytes.  lines: whether their ends matter."""
    try:
        with open(file, "rb") as raw:
            if not raw.seekable():  # a pipe gives its bytes once, so they cannot be looked at before
                yield from raw
                return
            packed = raw.read(len(GZIP)) == GZIP
            raw.seek(0)
            stream = gzip.GzipFile(fileobj=raw) if packed else raw
            _check_head(file, stream.read(HEAD), lines)
            stream.seek(0)
            yield from stream
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{file} is damaged: gzip cannot read it to its end ({error}); compress it again") from error
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror or error})") from error


def _check_head(file: Path, head: bytes, lines: bool) -> None:
    """Raise InputError if the first bytes of a file show that it is no UTF-8 text."""
    if found := describe_content(head):
        raise InputError(f"{file} is no text in UTF-8: it is {found}")
    if b"\0" in head.split(b"\n", 1)[0]:
        raise InputError(f"{file} is no text in UTF-8: its first line has zero bytes; save it as UTF-8 (is it UTF-16?)")
    if lines and b"\r" in head and b"\n" not in head:
        raise InputError(
            f"{file}: its lines end in carriage returns alone, as an old Mac's; convert it, such as by "
            r"tr '\r' '\n' < OLD > NEW"
        )
