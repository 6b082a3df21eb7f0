"""What each command does; `bitkd.cli` parses, this works."""

import argparse
from collections.abc import Callable

from bitkd.commands.checkpoints import evaluate_command, predict_command
from bitkd.commands.runs import augment_command, compare_command, config_command, plan_command, run_command

COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": run_command,
    "plan": plan_command,
    "augment": augment_command,
    "evaluate": evaluate_command,
    "predict": predict_command,
    "compare": compare_command,
    "config": config_command,
}
