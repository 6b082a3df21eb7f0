"""The processes of a run: started before the first stage, reused to the last."""

import os
import subprocess
import sys
import threading
import time
from functools import partial
from typing import Any, TypeVar

import lightning.pytorch as pl
from lightning.pytorch.strategies import DDPStrategy, ParallelStrategy

from bitkd.config.schema import TrainerSpec
from bitkd.errors import InputError
from bitkd.processes.signals import INTERRUPTED, LAUNCHER, STOPPED

T = TypeVar("T")

GRACE_SECONDS = 10.0
"""For rank zero to tell what happened, after a process that it started has died."""


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
                os.environ[LAUNCHER] = str(os.getpid())
                self._strategy.launcher.launch(lambda: None)
                del os.environ[LAUNCHER]
                _take_over_observer()
            self._strategy.setup_environment()

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


def _take_over_observer() -> None:
    """Lightning watches the processes that it started, and kills this one too when one of them dies: in silence, and maybe
    before the work has failed with a message of its own.
    """
    for thread in threading.enumerate():
        if thread.name == "child-process-observer":
            thread._terminate_all = partial(_bring_down, thread._child_processes)  # type: ignore[attr-defined]


def _bring_down(processes: list[subprocess.Popen]) -> None:
    rank, code = next((rank, p.returncode) for rank, p in enumerate(processes, start=1) if p.returncode)
    stopped = code in (STOPPED, INTERRUPTED)
    if not stopped:
        print(
            f"bitkd: rank {rank} died (code {code}); all processes leave, run the same command again to go on",
            file=sys.stderr,
            flush=True,
        )
    time.sleep(GRACE_SECONDS)
    for process in processes:
        process.kill()
    os._exit(code if stopped else 1)
