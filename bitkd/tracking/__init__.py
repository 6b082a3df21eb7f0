"""Where a run's metrics go besides its CSV files."""

from bitkd.config.schema import Config
from bitkd.pipeline.observer import Observer


def make_observer(config: Config) -> Observer:
    """The observer that `logger=` asks for; wandb is imported only if it is used."""
    if config.logger == "wandb":
        from bitkd.tracking.wandb import WandbObserver

        return WandbObserver()
    return Observer()
