"""Output of commands: tables and lines, or JSON. Only rank zero prints."""

import json
from typing import Any

from rich.console import Console

# Disable rich markup: user text such as [/data/wiki.txt] would be read as a closing tag.
_VERBATIM: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}


def make_console(stderr: bool = False) -> Console:
    """A rich console. If the output is not a terminal, it is so wide that table rows are not wrapped."""
    console = Console(stderr=stderr, soft_wrap=True, **_VERBATIM)
    return console if console.is_terminal else Console(stderr=stderr, width=180, **_VERBATIM)


def print_json(content: Any) -> None:
    """Print plain data as JSON."""
    print(json.dumps(content, indent=2, ensure_ascii=False))


def is_other_rank() -> bool:
    """Whether this process is not rank zero, and so writes and prints nothing."""
    from lightning.pytorch.utilities import rank_zero_only

    return rank_zero_only.rank != 0  # type: ignore[attr-defined]
