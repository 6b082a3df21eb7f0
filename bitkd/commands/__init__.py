"""What each command does; `bitkd.cli` parses the arguments."""

import argparse
from collections.abc import Callable
from importlib import import_module

_MODULES = {
    "run": "run",
    "augment": "run",
    "plan": "plan",
    "config": "plan",
    "evaluate": "evaluate",
    "predict": "predict",
    "compare": "compare",
    "power": "power",
    "throughput": "throughput",
    "export": "export",
    "push": "push",
    "store": "store",
    "sweep": "sweep",
    "benchmark": "benchmark",
}


def find_command(name: str) -> Callable[[argparse.Namespace], int]:
    """The function of a command; only its own module is imported, so that light commands are fast."""
    return getattr(import_module(f"bitkd.commands.{_MODULES[name]}"), f"{name}_command")
