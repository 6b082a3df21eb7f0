"""Names that become names of files and folders: each is one component of a path, and no two of them are the same folder."""

import html
import re
import unicodedata
from collections.abc import Iterable, Sequence

from bitkd.errors import InputError

LONGEST_NAME = 120
"""Bytes of a name in UTF-8: file systems allow 255, and bitkd adds to it (`-<hash>.json`, the host's name)."""

ALLOWED = (
    f"use letters, digits, spaces inside, and _ . - + = : , @ % or ~, at most {LONGEST_NAME} bytes; the first a letter, a "
    "digit or _, the last no dot"
)

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters, which can steer a terminal, and halves of characters; a tab and a line break are text."""

_SIGNS = frozenset("_.-+=:,@%~ ")


def check_name(name: str, setting: str, longest: int = LONGEST_NAME) -> None:
    """Check that a name is one component of a path on every system.

    setting: put before the name in the message, such as "run.name=".  longest: bytes.
    Raises InputError with what was found and what is allowed.
    """
    if problem := _problem(name, longest):
        raise InputError(f"{setting}{shown(name)} {problem}; it becomes the name of a folder: {ALLOWED}")


def is_name(name: str) -> bool:
    """Whether `check_name` allows a name."""
    return _problem(name, LONGEST_NAME) is None


def check_distinct(names: Iterable[str], setting: str) -> None:
    """Raise InputError if two names differ only in case, so that some file systems take them for one."""
    found: dict[str, str] = {}
    for name in names:
        other = found.setdefault(name.casefold(), name)
        if other != name:
            raise InputError(
                f"{setting}{other} and {setting}{name} differ only in case, which some file systems ignore; rename one"
            )


def shown(text: str, longest: int = 60) -> str:
    """Text of others for a message: characters that no one can see as escapes, and not too long."""
    visible = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: longest + 1])
    return f"{visible[:longest]}…" if len(text) > longest else visible


def joined(words: Iterable[object]) -> str:
    """a, b and c."""
    *before, last = map(str, words)
    return f"{', '.join(before)} and {last}" if before else last


def numbered(noun: str, numbers: Sequence[int]) -> str:
    """seed 1, or seeds 1, 2 and 3."""
    return f"{noun}{'' if len(numbers) == 1 else 's'} {joined(numbers)}"


def escaped(text: str) -> str:
    """Text inside a line of Markdown, so that it shows as it is: no tag, link, cell, emphasis or line of its own."""
    text = re.sub(r"[\t\n\v\f\r\x85\u2028\u2029]+", " ", text)
    text = re.sub(r"([\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])|(?<=www)\.|:(?=//))", r"\\\1", text)
    # GitHub makes a link of a@b.c, whether or not the sign is escaped.
    return html.escape(text, quote=False).replace("@", "@<!-- -->")


def _problem(name: str, longest: int) -> str | None:
    """What is wrong with a name; None if it can be used."""
    if not name.strip():
        return "is empty"
    if wrong := next((c for c in name if not (c in _SIGNS or unicodedata.category(c)[0] in "LMN")), None):
        return f"has the character {'space of another kind' if wrong.isspace() else repr(wrong)}"
    if name[0] != "_" and unicodedata.category(name[0])[0] not in "LN":
        return f"begins with {'a space' if name[0] == ' ' else name[0]}"
    if name[-1] in ". ":
        return f"ends with a {'space' if name[-1] == ' ' else 'dot'}, which some file systems drop"
    if name != unicodedata.normalize("NFC", name):
        return "is not in Unicode's normal form C, so that another name looks the same"
    if (size := len(name.encode("utf-8", "replace"))) > longest:
        return f"has {size} bytes"
    return None
