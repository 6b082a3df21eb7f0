"""How commands speak: tables and lines for people, JSON for machines, and one voice among several processes."""

import json
import logging
import warnings
from typing import Any

from rich.console import Console

# Settings and other programs' words stand in the lines: [/data/wiki.txt] is a list here, not the end of a colour.
_VERBATIM: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}


def make_console(stderr: bool = False) -> Console:
    """rich's console; where the output is no terminal, wide enough for a table's rows to stay lines."""
    console = Console(stderr=stderr, soft_wrap=True, **_VERBATIM)
    return console if console.is_terminal else Console(stderr=stderr, width=180, **_VERBATIM)


def print_json(content: Any) -> None:
    print(json.dumps(content, indent=2, ensure_ascii=False))


def is_other_rank() -> bool:
    """Whether this is one of the processes that work but neither write nor speak."""
    from lightning.pytorch.utilities import rank_zero_only

    return rank_zero_only.rank != 0  # type: ignore[attr-defined]


def quieten(speaks: bool = True) -> None:
    """Keep the libraries' routine remarks off the screen; errors stay, and where it `speaks`, our own lines.

    Their progress bars are kept off by the environment, see `bitkd.cli`.
    """
    # The project's own remarks: counts of truncated or empty rows, where candidates come from.
    own = logging.getLogger("bitkd")
    if speaks and not own.handlers:
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
    ".*dataloader is not resumable.*",  # ours is: ResumeCheckpoint tells the sampler where to start
    ".*recommended to use `self.log.*sync_dist.*",  # torchmetrics has synchronized the value already
    ".*broadcast_buffers.*deprecated.*",
    ".*LeafSpec.*deprecated.*",
    ".*Trying to infer the `batch_size`.*",
)
