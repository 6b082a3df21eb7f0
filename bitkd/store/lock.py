"""One process group computes an artifact, others wait for it, and take over when it is dead.

It works on network file systems and does not trust clocks: a lock is a file created exclusively, its holder changes a second file
every few seconds, and who waits for it measures by its own monotonic clock how long that file has stayed as it is.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from bitkd.files import is_alive

HEARTBEAT_SECONDS = 5.0
SILENT_SECONDS = 60.0
"""A holder that has been silent for so long is dead; on this machine a process id that is gone tells at once."""

POLL_SECONDS = 0.5

_mine: set[str] = set()
"""Locks that this process holds: one with its process id that is none of them is of another, in a container before this."""


class Lock:
    """The right to compute the artifact `key` of the store in `root`."""

    def __init__(self, root: Path, key: str) -> None:
        self.file = root / ".locks" / key
        self.beat = self.file.with_name(f"{key}.beat")
        self.id = uuid.uuid4().hex
        self.held = False
        self._stop = threading.Event()
        self._seen: tuple[str, float] | None = None

    def wait(self, seconds: float, done: Callable[[], bool] = lambda: False) -> str:
        """Try for so long: `held` when the lock is ours, `done` when `done()` holds first, else `waiting`."""
        until = time.monotonic() + seconds
        while True:
            if done():
                return "done"
            if self._try():
                return "held"
            if self._holder_is_dead():
                self._take_away()
            elif time.monotonic() >= until:
                return "waiting"
            else:
                time.sleep(POLL_SECONDS)

    def release(self) -> None:
        """Give the lock back, if we hold it."""
        if not self.held:
            return
        self.held = False
        self._stop.set()
        with contextlib.suppress(OSError):  # the store may be gone; a dead holder's lock is taken over anyway
            if self._holder().get("id") == self.id:
                self.file.unlink()
            self.beat.unlink(missing_ok=True)
        _mine.discard(self.id)

    def is_held(self, silence: float = 10 * SILENT_SECONDS) -> bool:
        """Whether the lock is held by somebody who may be alive, without trying for it.

        silence: seconds without a sign of life after which nobody is; long, because what is judged dead may be deleted.
        """
        found = self._holder()
        if not found:  # not there, or just being written
            return self.file.exists()
        if found["id"] in _mine:
            return True
        if _is_gone(found):
            return False
        probe = self.file.with_name(f".{self.id}")
        try:  # the file server's clock against itself
            probe.touch()
            silent = probe.stat().st_mtime - self.beat.stat().st_mtime
        except OSError:
            return True
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()
        return silent < silence

    def holder(self) -> str:
        """Who holds the lock, for people."""
        found = self._holder()
        return f"process {found['pid']} on {found['host']}" if found else "nobody"

    def _try(self) -> bool:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"id": self.id, "host": socket.gethostname(), "pid": os.getpid()})
        # Written beside and linked into place: a lock that can be seen says whose it is.
        mine = self.file.with_name(f".{self.id}")
        mine.write_text(content)
        _mine.add(self.id)
        try:
            os.link(mine, self.file)
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            try:
                with open(self.file, "x") as stream:
                    stream.write(content)
            except FileExistsError:
                return False
        finally:
            mine.unlink(missing_ok=True)
        self.held = True
        self._stop.clear()
        self._change_beat(0)
        threading.Thread(target=self._keep_beating, daemon=True).start()
        return True

    def _keep_beating(self) -> None:
        count = 0
        while not self._stop.wait(HEARTBEAT_SECONDS):
            count += 1
            with contextlib.suppress(OSError):
                self._change_beat(count)

    def _change_beat(self, count: int) -> None:
        self.beat.write_text(f"{self.id} {count}")

    def _holder(self) -> dict:
        try:
            return json.loads(self.file.read_text())
        except (OSError, ValueError):
            return {}

    def _holder_is_dead(self) -> bool:
        found = self._holder()
        if _is_gone(found):
            self._seen = (found["id"], 0.0)
            return True
        try:
            beat = f"{found.get('id')} {self.beat.read_text()}"
        except OSError:
            beat = str(found.get("id"))
        now = time.monotonic()
        if self._seen is None or self._seen[0] != beat:
            self._seen = (beat, now)
        return now - self._seen[1] >= SILENT_SECONDS

    def _take_away(self) -> None:
        """Remove the lock of a dead holder; of several who try, one succeeds."""
        assert self._seen
        judged = self._seen[0].split()[0]
        if self._holder().get("id", "None") != judged:
            return
        grave = self.file.with_name(f".dead-{uuid.uuid4().hex}")
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.file, grave)
            grave.unlink()
        self._seen = None


def _is_gone(holder: dict) -> bool:
    """Whether a holder was a process of this machine that is certainly there no more."""
    if holder.get("host") != socket.gethostname():
        return False
    pid = int(holder["pid"])
    return holder["id"] not in _mine if pid == os.getpid() else not is_alive(pid)
