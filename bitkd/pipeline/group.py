"""The processes of a run: started before the first stage, reused to the last."""

import os
from typing import Any, TypeVar

import lightning.pytorch as pl
from lightning.pytorch.strategies import DDPStrategy, ParallelStrategy

from bitkd.config.schema import TrainerSpec
from bitkd.errors import InputError
from bitkd.pipeline.stopping import follow_parent

T = TypeVar("T")


def make_trainer(spec: TrainerSpec, find_unused_parameters: bool = False, **settings: Any) -> pl.Trainer:
    """A Lightning Trainer with the run's processes and precision."""
    strategy: Any = spec.strategy
    if spec.devices * spec.num_nodes > 1 and spec.strategy in ("auto", "ddp"):
        # Buffers are constants here, and uneven dev sets must not wait for each other inside a forward.
        strategy = DDPStrategy(broadcast_buffers=False, find_unused_parameters=find_unused_parameters)
    try:
        return pl.Trainer(
            accelerator=spec.accelerator,
            devices=spec.devices,
            num_nodes=spec.num_nodes,
            strategy=strategy,
            precision=spec.precision,  # type: ignore[arg-type]
            use_distributed_sampler=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            **settings,
        )
    except (ValueError, RuntimeError) as error:  # Lightning's MisconfigurationException is either
        raise InputError(f"trainer.* does not fit this machine: {error}") from error


class Group:
    """The process group of a run. Rank zero decides and writes; every decision is broadcast, so that all agree.

    Lightning starts its other processes at the first fit only, which would be too late: a stage may be skipped
    by one rank and waited for by another.
    """

    def __init__(self, spec: TrainerSpec) -> None:
        self._strategy = make_trainer(
            spec, logger=False, enable_checkpointing=False, enable_progress_bar=False
        ).strategy
        if isinstance(self._strategy, ParallelStrategy):
            if self._strategy.launcher is not None:
                self._strategy.launcher.launch(lambda: None)
            self._strategy.setup_environment()
        # Lightning's launcher is rank zero itself; torchrun's is a process of its own.
        if self.world_size > 1 and (self.rank or "TORCHELASTIC_RUN_ID" in os.environ):
            follow_parent(self.rank)

    @property
    def is_global_zero(self) -> bool:
        return self._strategy.is_global_zero

    @property
    def rank(self) -> int:
        return int(getattr(self._strategy, "global_rank", 0))

    @property
    def world_size(self) -> int:
        return int(getattr(self._strategy, "world_size", 1))

    @property
    def device(self) -> str:
        """This rank's device."""
        return str(self._strategy.root_device)

    def any(self, value: bool) -> bool:
        """Whether `value` holds on any rank."""
        return bool(self._strategy.reduce_boolean_decision(value, all=False))

    def broadcast(self, value: T) -> T:
        """Rank zero's `value`, on every rank."""
        return self._strategy.broadcast(value)

    def barrier(self) -> None:
        """Wait for all ranks."""
        self._strategy.barrier()
