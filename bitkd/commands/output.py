"""Output of commands: JSON. Only rank zero prints. Tables and lines: `bitkd.report.console`, `bitkd.report.fitted`."""

import json
from typing import Any


def print_error(text: str) -> None:
    """Print a message to the standard error, wrapped between words if that is a terminal."""
    from bitkd.report.console import Console

    Console(stderr=True).print(f"bitkd: {text}")


def print_json(content: Any) -> None:
    """Print plain data as JSON."""
    print(json.dumps(content, indent=2, ensure_ascii=False))


def is_other_rank() -> bool:
    """Whether this process is not rank zero, and so writes and prints nothing."""
    from lightning.pytorch.utilities import rank_zero_only

    return rank_zero_only.rank != 0  # type: ignore[attr-defined]
