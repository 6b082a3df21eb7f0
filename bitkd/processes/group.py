"""The processes of a run. They are started before the first stage and used for all stages."""

import logging
import os
import subprocess
import sys
import threading
import time
from functools import partial
from typing import Any, TypeVar

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DDPStrategy, ParallelStrategy

from bitkd.config.schema import TrainerSpec
from bitkd.errors import InputError
from bitkd.processes.signals import INTERRUPTED, LAUNCHER, STOPPED

log = logging.getLogger(__name__)

T = TypeVar("T")

GRACE_SECONDS = 10.0
"""Time for rank zero to report its own error, after a process that it started has died."""


def make_trainer(spec: TrainerSpec, find_unused_parameters: bool = False, **settings: Any) -> pl.Trainer:
    """A Lightning Trainer with the run's processes and precision; `settings` go to the Trainer.

    Raises InputError if the settings do not fit this machine.
    """
    strategy: Any = spec.strategy
    if spec.devices * spec.num_nodes > 1 and spec.strategy in ("auto", "ddp"):
        # Buffers are constants here. To broadcast them would make ranks wait for each other in every forward pass, and
        # hang if one rank has fewer dev batches.
        strategy = DDPStrategy(
            broadcast_buffers=False, find_unused_parameters=find_unused_parameters, gradient_as_bucket_view=True
        )
    try:
        trainer = pl.Trainer(
            accelerator=spec.accelerator,
            devices=spec.devices,
            num_nodes=spec.num_nodes,
            strategy=strategy,
            precision=spec.precision,
            use_distributed_sampler=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            **settings,
        )
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise InputError(f"trainer.* does not fit this machine: {error}") from error
    # With several processes Lightning waits, before each batch, for rank zero and for the device, to learn of a SIGTERM that
    # it never gets: bitkd handles signals itself.
    loop = trainer.fit_loop.epoch_loop
    if hasattr(loop, "_broadcast_sigterm_tensor"):
        loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    return trainer


class Group:
    """The process group of a run. Rank zero decides and writes; every decision is broadcast, so that all agree.

    Lightning starts the other processes at its first fit. That is too late: ranks must agree before it which stages are
    finished.
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
                _report_dead_ranks(launched=bool(getattr(self._strategy.launcher, "procs", [])))
            self._strategy.setup_environment()

    @property
    def is_global_zero(self) -> bool:
        """Whether this is rank zero."""
        return self._strategy.is_global_zero

    @property
    def rank(self) -> int:
        """Rank of this process among all of the run."""
        return int(getattr(self._strategy, "global_rank", 0))

    @property
    def world_size(self) -> int:
        """Number of processes of the run."""
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


OBSERVER = "child-process-observer"
"""Name of Lightning's thread that watches the processes it started (lightning/fabric/strategies/launchers)."""


def _report_dead_ranks(launched: bool) -> None:
    """When a process that Lightning started dies, print that and give rank zero time to report its own error first.

    Lightning's own observer kills this process too, at once and without a message. It has no public hook.
    launched: whether Lightning has started processes.
    """
    private = ("_terminate_all", "_child_processes")
    threads = (thread for thread in threading.enumerate() if thread.name == OBSERVER)
    observers = [thread for thread in threads if all(hasattr(thread, name) for name in private)]
    for thread in observers:
        thread._terminate_all = partial(_bring_down, thread._child_processes)  # type: ignore[attr-defined]
    if launched and not observers:
        log.warning(
            "Lightning has no thread %s as its version 2.6 has: if a rank dies, the run may end without a message, or hang; "
            "install lightning<2.7",
            OBSERVER,
        )


def _bring_down(processes: list[subprocess.Popen[bytes]]) -> None:
    rank, code = next((rank, p.returncode) for rank, p in enumerate(processes, start=1) if p.returncode)
    stopped = code in (STOPPED, INTERRUPTED)
    if not stopped:
        print(
            f"bitkd: rank {rank} died (code {code}); all processes exit, run the same command again to resume",
            file=sys.stderr,
            flush=True,
        )
    time.sleep(GRACE_SECONDS)
    for process in processes:
        process.kill()
    os._exit(code if stopped else 1)
