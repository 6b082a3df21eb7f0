"""A lock on an artifact's key: one process group computes it, the others wait, and take over if the holder dies.

It works on network file systems and does not trust clocks. The lock is a file that is created exclusively. Its holder
rewrites a second file, the heartbeat, every few seconds; a waiting process measures with its own monotonic clock for how
long the heartbeat has not changed.
"""

# Why not filelock's SoftFileLease: it compares this machine's clock with the lock file's mtime, so that a wrong clock takes
# the lock from a live holder. Here a clock that jumps does no harm (tests/store/test_lock.py).

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bitkd.files import is_alive, read_json
from bitkd.names import shown

HEARTBEAT_SECONDS = 5.0
TIMEOUT_SECONDS = 60.0
"""Without a heartbeat for this long, a holder counts as dead. On this machine a missing process id shows it at once."""

POLL_SECONDS = 0.5

_mine: set[str] = set()
"""Ids of the locks that this process holds. A lock file that has our process id and is not listed here was left by an
earlier container, whose process had the same id."""


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
        """Try to get the lock for at most `seconds`.

        Returns `held` if we have it now, `done` if `done()` became true first, else `waiting`.
        """
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
        """Release the lock, if we hold it."""
        if not self.held:
            return
        self.held = False
        self._stop.set()
        with contextlib.suppress(OSError):  # the store may have been deleted
            if self._holder().get("id") == self.id:
                self.file.unlink()
            self.beat.unlink(missing_ok=True)
        _mine.discard(self.id)

    def is_held(self, timeout: float = 10 * TIMEOUT_SECONDS) -> bool:
        """Whether a process that may be alive holds the lock; does not try to get it.

        timeout: seconds without a heartbeat after which the holder counts as dead. Long by default, because callers may
        delete what a dead holder owned.
        """
        found = self._holder()
        if not found:  # there is no lock, or it is being written
            return self.file.exists()
        if found["id"] in _mine:
            return True
        if _is_gone(found):
            return False
        probe = self.file.with_name(f".{self.id}")
        try:  # compare two times of the file server's own clock
            probe.touch()
            age = probe.stat().st_mtime - self.beat.stat().st_mtime
        except OSError:
            return True
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()
        return age < timeout

    def holder(self) -> str:
        """Who holds the lock, for messages."""
        found = self._holder()
        return f"process {found['pid']} on {shown(found['host'])}" if found else "nobody"

    def _try(self) -> bool:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"id": self.id, "host": socket.gethostname(), "pid": os.getpid()})
        # Written under another name and then linked, so that a visible lock file is complete.
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
        if (
            self.beat.is_symlink() or not self.beat.is_file()
        ):  # it would be written where a link leads, or wait for a pipe
            self.beat.unlink(missing_ok=True)
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

    def _holder(self) -> dict[str, Any]:
        found = read_json(self.file)
        kinds = {"id": str, "host": str, "pid": int}
        is_holder = isinstance(found, dict) and all(type(found.get(name)) is kind for name, kind in kinds.items())
        return found if is_holder else {}

    def _holder_is_dead(self) -> bool:
        found = self._holder()
        if _is_gone(found):
            self._seen = (found["id"], 0.0)
            return True
        try:
            beat = f"{found.get('id')} {self.beat.read_text() if self.beat.is_file() else ''}"
        except OSError:
            beat = str(found.get("id"))
        now = time.monotonic()
        if self._seen is None or self._seen[0] != beat:
            self._seen = (beat, now)
        return now - self._seen[1] >= TIMEOUT_SECONDS

    def _take_away(self) -> None:
        """Remove the lock of a dead holder. If several processes try, one succeeds."""
        assert self._seen
        judged = self._seen[0].split()[0]
        if self._holder().get("id", "None") != judged:
            return
        trash = self.file.with_name(f".dead-{uuid.uuid4().hex}")
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.file, trash)
            trash.unlink()
        self._seen = None


def _is_gone(holder: dict[str, Any]) -> bool:
    """Whether the holder is a process of this machine that has certainly ended."""
    if holder.get("host") != socket.gethostname():
        return False
    pid = int(holder["pid"])
    return holder["id"] not in _mine if pid == os.getpid() else not is_alive(pid)
