import json
import os
import socket
import subprocess

import pytest

from bitkd.errors import InputError
from bitkd.store.artifacts import Store, read_artifact
from bitkd.store.records import MetricsRecord, StageRecord, parse_record
from tests.store.test_records import GOLDEN

RECORD = parse_record(StageRecord, (GOLDEN / "stage_untrained.json").read_bytes(), "golden", "")
METRICS = MetricsRecord(1.0, {"dev": {"loss": 0.5}})


def publish(store, key="kind-abc", content=b"weights"):
    return store.publish(key, lambda folder: (folder / "model.safetensors").write_bytes(content), RECORD, METRICS)


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store")
    store.prepare()
    return store


def test_a_published_artifact_is_whole(store):
    artifact = publish(store)
    assert store.finished("kind-abc")
    assert store.find_damage("kind-abc") is None
    assert artifact.metrics == METRICS
    assert artifact.stage.name == RECORD.name
    assert set(artifact.stage.checksums) == {"model.safetensors", "metrics.json"}


def test_a_failing_write_leaves_nothing_visible(store):
    def write(folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        store.publish("kind-abc", write, RECORD, METRICS)
    assert not store.finished("kind-abc")


@pytest.mark.parametrize("name", ["model.safetensors", "metrics.json"])
def test_a_flipped_byte_is_found(store, name):
    file = publish(store).path / name
    content = bytearray(file.read_bytes())
    content[1] ^= 1
    file.write_bytes(content)
    assert "checksum" in store.find_damage("kind-abc") or "cannot be read" in store.find_damage("kind-abc")


def test_a_missing_file_is_found(store):
    (publish(store).path / "model.safetensors").unlink()
    assert "cannot be read" in store.find_damage("kind-abc")


@pytest.mark.parametrize("content", ["{", "[]", '{"checksums": {}}', json.dumps(RECORD.as_data() | {"checksums": {}})])
def test_an_unreadable_record_is_found(store, content):
    (publish(store).path / "stage.json").write_text(content)
    assert "cannot be read" in store.find_damage("kind-abc")


def test_a_removed_artifact_is_gone(store):
    publish(store)
    store.remove("kind-abc")
    assert not store.finished("kind-abc")


def test_the_first_of_two_publishers_stays(store):
    publish(store, content=b"first")
    publish(store, content=b"second")
    assert (store.path("kind-abc") / "model.safetensors").read_bytes() == b"first"


def test_folders_of_dead_processes_are_swept_and_others_kept(store):
    dead = store.root / ".tmp" / f"kind-abc.{socket.gethostname()}.{2**22 + 1}"
    alive = store.root / ".tmp" / f"kind-abc.{socket.gethostname()}.{os.getpid()}"
    elsewhere = store.root / ".tmp" / "kind-abc.another-host.1"
    for folder in (dead, alive, elsewhere):
        folder.mkdir()
    store.prepare()
    assert not dead.exists()
    assert alive.exists()
    assert elsewhere.exists()


def test_publishing_removes_the_work_folder(store):
    store.work("kind-abc").mkdir(parents=True)
    publish(store)
    assert not store.work("kind-abc").exists()


def test_a_store_that_cannot_be_written_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"not writable .*run\.dir= or run\.store="):
        Store(tmp_path / "file" / "store").prepare()


def test_records_are_plain_json(store):
    artifact = publish(store)
    assert json.loads((artifact.path / "metrics.json").read_text()) == {"score": 1.0, "dev": {"loss": 0.5}}


def test_what_is_no_artifact_is_refused(store):
    with pytest.raises(InputError, match=r"is no finished artifact: it has no stage\.json; run the stage again"):
        read_artifact(store.root)
    folder = publish(store).path
    for name in ("metrics.json", "stage.json"):
        (folder / name).write_text("{")
        with pytest.raises(InputError, match=rf"{name} is damaged or of another version .*; run the stage again"):
            read_artifact(folder)


def test_what_a_dead_process_left_is_swept(store, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "node1.example.com")
    gone = subprocess.Popen(["true"])
    gone.wait()
    for folder in (f"kind-abc.node1.example.com.{gone.pid}", f"kind-abc.node1.example.com.{os.getpid()}"):
        (store.root / ".tmp" / folder).mkdir()
    store.prepare()
    assert [folder.name for folder in (store.root / ".tmp").iterdir()] == [f"kind-abc.node1.example.com.{os.getpid()}"]
