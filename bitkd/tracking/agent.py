"""Whether this process is a trial of `wandb agent`; found without importing wandb."""

import os


def under_agent() -> bool:
    """Whether a wandb agent started this process, as one trial of a sweep."""
    return bool(os.environ.get("WANDB_SWEEP_ID"))


def trial_name(pipeline: str) -> str | None:
    """A run's name under a wandb agent, so that each trial has its own folder; None without an agent."""
    return f"{pipeline}-{os.environ.get('WANDB_RUN_ID', 'trial')}" if under_agent() else None
