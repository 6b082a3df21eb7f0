"""Output of commands: tables and lines, or JSON. Only rank zero prints."""

import json
import logging
import warnings
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


def quieten(show_notes: bool = True) -> None:
    """Hide the libraries' routine messages, but not errors.  show_notes: print the log messages of bitkd itself.

    Progress bars are turned off by environment variables, see `bitkd.cli`.
    """
    # Such as counts of truncated or empty rows.
    own = logging.getLogger("bitkd")
    if show_notes and not own.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("note: %(message)s"))
        own.addHandler(handler)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in _REMARKS:
        warnings.filterwarnings("ignore", message=message)


_REMARKS = (
    ".*does not have many workers.*",
    ".*smaller than the logging interval.*",
    ".*dataloader is not resumable.*",  # bitkd's is: ResumeCheckpoint restores the position in the data
    ".*recommended to use `self.log.*sync_dist.*",  # torchmetrics has synchronized the value already
    ".*broadcast_buffers.*deprecated.*",
    ".*LeafSpec.*deprecated.*",
    ".*Trying to infer the `batch_size`.*",
)
