"""Whether this process is a trial of `wandb agent`; found without importing wandb."""

import os
from dataclasses import replace

from bitkd.config.schema import Config


def under_agent() -> bool:
    """Whether a wandb agent started this process, as one trial of a sweep."""
    return bool(os.environ.get("WANDB_SWEEP_ID"))


def with_run_name(config: Config) -> Config:
    """The configuration with a name for the run: under a wandb agent each trial gets a folder of its own."""
    name = config.run.name
    if name is None and under_agent():
        name = f"{config.pipeline.name}-{os.environ.get('WANDB_RUN_ID', 'trial')}"
    return replace(config, run=replace(config.run, name=name))
