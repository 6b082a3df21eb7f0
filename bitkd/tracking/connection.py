"""Opens and finishes wandb runs without holding up the training, whatever the server does.

- Every wait is limited. Without an answer, and with a key that the server refuses, the rest of the process is logged
  offline: nothing is lost, and one message has the command that sends it later.
- wandb is called in a thread of its own, so that this one can end the wait when the process is asked to stop.

wandb is imported inside the functions, because its import can fail, and takes a second.
"""

import contextlib
import logging
import os
import shlex
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

INIT_SECONDS, FINISH_SECONDS, UPLOAD_SECONDS = 30.0, 60.0, 600.0
"""How long to wait for the server at the start of a wandb run, at its end, and at its end if it has a model to upload.
WANDB_INIT_TIMEOUT and WANDB_FINISH_TIMEOUT set others."""

STOP_SECONDS = 10.0
"""How long the end of a wandb run may take once this process was asked to stop."""

POLL_SECONDS = 0.1


class WaitEndedError(Exception):
    """This process was asked to stop while it waited for wandb."""


class Connection:
    """The wandb runs of one process, one at a time.

    stop_requested: whether this process was asked to stop.
    """

    def __init__(self, stop_requested: Callable[[], bool]) -> None:
        self._stop_requested = stop_requested
        self._offline = False
        self._gave_up = False

    def open(self, logs: Path, upload: bool = False, **settings: Any) -> Any:
        """The open wandb run, or a new one. Raises WaitEndedError if this process was asked to stop.

        It is offline if there is no key, or if the server failed before; there is never a prompt.

        logs: folder of wandb's files.  upload: the run will have a model to upload.  settings: for `wandb.init`.
        """
        import wandb

        if self._gave_up:
            raise WaitEndedError("asked to stop")
        if wandb.run is not None:
            return wandb.run
        logs.mkdir(parents=True, exist_ok=True)
        limits: dict[str, Any] = {"finish_timeout_raises": True}
        if "WANDB_INIT_TIMEOUT" not in os.environ:
            limits["init_timeout"] = INIT_SECONDS
        if "WANDB_FINISH_TIMEOUT" not in os.environ:
            limits["finish_timeout"] = UPLOAD_SECONDS if upload else FINISH_SECONDS

        mode = self._mode(logs)
        while True:
            start = partial(wandb.init, dir=str(logs), mode=mode, settings=wandb.Settings(**limits), **settings)
            try:
                return self.wait(start)
            except WaitEndedError:
                self._gave_up = True
                raise
            except Exception as error:
                if mode != "online":
                    raise
                self._go_offline(error, logs)
            mode = "offline"
            with contextlib.suppress(SystemExit, TimeoutError):  # wandb's, if its service ends with an error
                self.wait(wandb.teardown, limit=FINISH_SECONDS)  # otherwise the service still holds the run's id

    def finish(self, code: int) -> None:
        """Finish the open wandb run, if there is one.  code: the exit code that it is given."""
        import wandb

        run = wandb.run
        if run is None or self._gave_up:
            return
        folder = Path(run.dir).parent
        try:
            self.wait(lambda: run.finish(exit_code=code), patience=STOP_SECONDS)
        except (TimeoutError, WaitEndedError) as error:
            if isinstance(error, WaitEndedError):
                self._gave_up = True
                # Stops the upload and closes the file; at its exit, this process would wait for wandb again.
                wandb.setup().assert_service().inform_finish(run_id=run.id)
            self._go_offline(error, folder.parent.parent, None if run.offline else folder)

    def wait(self, call: Callable[[], T], patience: float = 0.0, limit: float = float("inf")) -> T:
        """The result of `call`, which runs in another thread.

        patience: seconds that it may go on after this process was asked to stop; then WaitEndedError is raised.
        limit: seconds until TimeoutError is raised. In both cases the thread is left alone.
        """
        if patience <= 0 and self._stop_requested():
            raise WaitEndedError("asked to stop")
        future: Future[T] = Future()

        def work() -> None:
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=work, name="wandb-call", daemon=True).start()
        end = time.monotonic() + limit
        stop_end = float("inf")
        while not wait([future], timeout=POLL_SECONDS).done:
            now = time.monotonic()
            if self._stop_requested():
                stop_end = min(stop_end, now + patience)
            if now >= stop_end:
                raise WaitEndedError("asked to stop")
            if now >= end:
                raise TimeoutError(f"no answer in {limit:.0f} s")
        return future.result()

    def _mode(self, logs: Path) -> Any:
        """wandb's mode for the next run; asks the server whether it is there, and accepts the key."""
        import wandb

        mode = os.environ.get("WANDB_MODE") or "online"
        if mode != "online":
            return mode
        if self._offline:
            return "offline"
        login = partial(wandb.login, prompt=False, verify=True)
        try:
            return "online" if self.wait(login, limit=FINISH_SECONDS) else "offline"
        except WaitEndedError:
            raise
        except Exception as error:  # wandb raises several types
            self._go_offline(error, logs)
            return "offline"

    def _go_offline(self, error: Exception, logs: Path, incomplete: Path | None = None) -> None:
        """Log this process's further runs offline, and tell once how all of it is sent later.

        incomplete: folder of an online run that the server has not got to its end.
        """
        import wandb

        if self._offline:
            return
        self._offline = True
        cause = next(iter(str(error).splitlines()), type(error).__name__)
        if isinstance(error, TimeoutError | WaitEndedError) or "in time" in cause or "Timed out" in cause:
            cause = "no answer"
        words = ["wandb", "sync"]
        if incomplete is not None:
            words += ["--no-skip-online", shlex.quote(str(incomplete))]
        if incomplete is None or not self._stop_requested():
            words.append(f"{shlex.quote(str(logs / 'wandb'))}/offline-run-*")
        log.warning(
            "wandb: no connection to %s (%s); from here on this process logs offline, and nothing is lost. "
            "To send it later: %s",
            wandb.setup().settings.base_url,
            cause,
            " ".join(words),
        )
