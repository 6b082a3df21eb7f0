import json
import os
import socket
import subprocess
import threading
import time

import pytest

from bitkd.store import lock
from bitkd.store.lock import Lock


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(lock, "TIMEOUT_SECONDS", 0.4)
    monkeypatch.setattr(lock, "POLL_SECONDS", 0.02)


def test_one_holds_and_the_other_waits(tmp_path):
    one, other = Lock(tmp_path, "k"), Lock(tmp_path, "k")
    assert one.wait(0) == "held"
    assert other.wait(0.6) == "waiting"  # longer than the timeout
    assert other.wait(0.1, done=lambda: True) == "done"
    one.release()
    assert other.wait(0) == "held"
    other.release()
    assert list((tmp_path / ".locks").iterdir()) == []


def test_a_lock_of_a_dead_process_of_this_machine_is_taken_at_once(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    leave(tmp_path, socket.gethostname(), gone.pid)
    began = time.monotonic()
    assert Lock(tmp_path, "k").wait(5) == "held"
    assert time.monotonic() - began < 0.3


def test_a_lock_of_another_machine_without_a_heartbeat_is_taken_after_a_while(tmp_path):
    leave(tmp_path, "elsewhere", 1)
    mine = Lock(tmp_path, "k")
    assert mine.wait(0.2) == "waiting"
    assert mine.wait(5) == "held"


def test_a_clock_that_jumps_kills_nobody(tmp_path, monkeypatch):
    one, other = Lock(tmp_path, "k"), Lock(tmp_path, "k")
    assert one.wait(0) == "held"
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert other.wait(0.5) == "waiting"
    one.release()


def test_of_many_who_want_a_dead_holders_lock_one_at_a_time_has_it(tmp_path):
    leave(tmp_path, "elsewhere", 1)
    inside, most = 0, 0
    guard = threading.Lock()

    def work():
        nonlocal inside, most
        mine = Lock(tmp_path, "k")
        assert mine.wait(20) == "held"
        with guard:
            inside += 1
            most = max(most, inside)
        time.sleep(0.03)
        with guard:
            inside -= 1
        mine.release()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def leave(root, host, pid):
    (root / ".locks").mkdir()
    (root / ".locks" / "k").write_text(json.dumps({"id": "x", "host": host, "pid": pid}))
    (root / ".locks" / "k.beat").write_text("x 3")


def test_is_held_does_not_take_the_lock(tmp_path):
    lock = Lock(tmp_path, "k")
    assert not Lock(tmp_path, "k").is_held()
    lock.wait(0)
    assert Lock(tmp_path, "k").is_held()
    lock.release()
    foreign = {"id": "x", "host": "another", "pid": 1}
    lock.file.write_text(json.dumps(foreign))
    lock.beat.write_text("x 1")
    assert Lock(tmp_path, "k").is_held()
    os.utime(lock.beat, (0, 0))
    assert not Lock(tmp_path, "k").is_held()


def test_a_lock_of_a_container_before_this_with_our_process_id_is_dead(tmp_path):
    leave(tmp_path, socket.gethostname(), os.getpid())
    assert not Lock(tmp_path, "k").is_held()
    began = time.monotonic()
    mine = Lock(tmp_path, "k")
    assert mine.wait(5) == "held"
    assert time.monotonic() - began < 0.3
    assert Lock(tmp_path, "k").is_held()
    mine.release()


def test_a_lock_of_a_container_before_this_with_another_living_process_id_is_dead_without_a_heartbeat(tmp_path):
    leave(tmp_path, socket.gethostname(), os.getppid())
    mine = Lock(tmp_path, "k")
    assert mine.is_held()
    assert mine.wait(0.2) == "waiting"
    past = time.time() - 90
    os.utime(mine.beat, (past, past))
    assert not mine.is_held(60)
    assert mine.is_held()  # others may delete after a long time only
    assert mine.wait(5) == "held"
    mine.release()
