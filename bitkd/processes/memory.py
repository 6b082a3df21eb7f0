"""Peak memory of this process: of its GPU, or of itself."""

import contextlib
import re
from pathlib import Path

import torch

from bitkd.store.records import MIB

_PROC = Path("/proc/self")


def reset_peak(device: torch.device | str) -> None:
    """Begin a new measurement."""
    if torch.device(device).type == "cuda":
        torch.cuda.init()  # otherwise torch knows no device here
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):  # not Linux, or not allowed
            (_PROC / "clear_refs").write_text("5")


def peak_mib(device: torch.device | str) -> float | None:
    """MiB since `reset_peak`: what torch allocated on a GPU, or the resident memory of the process on a CPU.

    None on other devices, and on systems that do not tell.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    try:
        text = (_PROC / "status").read_text(encoding="utf-8") if kind == "cpu" else ""
    except OSError:
        return None
    found = re.search(r"^VmHWM:\s*(\d+) kB", text, re.MULTILINE)
    return int(found[1]) / 1024 if found else None
