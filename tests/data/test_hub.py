import json
import shutil
import socket
import time

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from bitkd.data import hub
from bitkd.data.hub import load_hub_dataset, load_tokenizer, resolve_pretrained
from bitkd.errors import InputError


def test_a_hub_that_cannot_be_reached_is_reported_within_twenty_seconds(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(InputError, match=r"model\.pretrained=no/such is no local folder.*the hub cannot be reached"):
        resolve_pretrained("no/such")
    with pytest.raises(InputError, match=r"no-such/glue/rte cannot be loaded: the hub cannot be reached.*data\.dir="):
        load_hub_dataset("no-such/glue", "rte")
    assert time.monotonic() - began < 20


def test_a_hub_that_accepts_the_connection_and_does_not_answer_is_given_up_on(monkeypatch):
    import datasets

    monkeypatch.setattr("bitkd.data.hub.PROBE_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(InputError, match=r"the hub cannot be reached \(.*model\.pretrained=FOLDER"):
            resolve_pretrained("no/such")
        assert time.monotonic() - began < 5
        with pytest.raises(InputError, match=r"the hub cannot be reached \(.*data\.dir="):
            load_hub_dataset("no-such/glue", "rte")
    assert not datasets.config.HF_HUB_OFFLINE


def test_a_resolver_that_hangs_is_given_up_on(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    monkeypatch.setattr("bitkd.data.hub.PROBE_SECONDS", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: time.sleep(3))
    began = time.monotonic()
    with pytest.raises(InputError, match=r"the hub cannot be reached \(no answer in 0\.2 s\)"):
        resolve_pretrained("no/such")
    assert time.monotonic() - began < 2


def test_a_folder_without_tokenizer_files_has_no_tokenizer(tiny_bert, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((tiny_bert / name).read_bytes())
    with pytest.raises(InputError, match=r"has no tokenizer \(none of \['tokenizer\.json'"):
        load_tokenizer(tmp_path)


def test_local_paths_come_first(tiny_bert, tmp_path):
    assert resolve_pretrained(str(tiny_bert)) == tiny_bert.resolve()
    with pytest.raises(InputError, match="there is no such folder"):
        resolve_pretrained(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="has no tokenizer"):
        load_tokenizer(tmp_path)


class ReadTimeout(Exception):
    """Of an HTTP client: which one huggingface_hub uses differs from version to version."""


def test_a_connection_that_breaks_in_a_download_is_an_input_error(monkeypatch):
    def snapshot_download(name, local_files_only, **_):
        if local_files_only:
            raise LocalEntryNotFoundError("not in the cache")
        raise ReadTimeout("the read operation timed out")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(hub, "hub_problem", lambda: None)
    with pytest.raises(InputError, match="cannot be loaded from the hub: the read operation timed out; check the id"):
        hub.resolve_pretrained("someone/some-bert")


@pytest.fixture
def repository(monkeypatch, tmp_path, tiny_bert):
    """Makes the cached and the remote files of one repository; returns the folder that is both, and the asked patterns."""
    folder, remote, asked = tmp_path / "snapshot", tmp_path / "remote", []

    def snapshot_download(name, local_files_only, allow_patterns, **_):
        if local_files_only:
            if not folder.is_dir():
                raise LocalEntryNotFoundError("not in the cache")
            return str(folder)
        asked.append(allow_patterns)
        folder.mkdir(exist_ok=True)
        for file in remote.iterdir():
            if any(file.match(pattern) for pattern in allow_patterns):
                shutil.copy(file, folder)
        return str(folder)

    def make(config, *names, cached=()):
        for place, files in ((remote, names), (folder, cached)):
            if files:
                place.mkdir()
                (place / "config.json").write_text(json.dumps(config))
                shutil.copy(tiny_bert / "tokenizer.json", place)
            for file in files:
                (place / file).write_text("{}")
        return folder, asked

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(hub, "hub_problem", lambda: None)
    return make


def test_an_onnx_model_is_downloaded_and_then_found_in_the_cache(repository, monkeypatch):
    folder, asked = repository({"bitkd_onnx": {}}, "model.onnx", "export.json")
    assert resolve_pretrained("someone/graph") == folder
    assert {"model.onnx", "export.json"} <= {file.name for file in folder.iterdir()}
    del asked[:]
    assert resolve_pretrained("someone/graph") == folder
    assert not asked


def test_graphs_of_other_models_are_not_downloaded(repository):
    folder, _ = repository({}, "model.safetensors", "model.onnx")
    assert resolve_pretrained("someone/plain") == folder
    assert not (folder / "model.onnx").exists()


def test_the_record_of_a_student_that_transformers_cached_is_asked_for(repository, monkeypatch):
    folder, asked = repository({"bitkd": {}}, "model.safetensors", "export.json", cached=["model.safetensors"])
    monkeypatch.setattr(hub, "hub_problem", lambda: "no connection")
    assert resolve_pretrained("someone/student") == folder
    assert not asked
    monkeypatch.setattr(hub, "hub_problem", lambda: None)
    assert resolve_pretrained("someone/student") == folder
    assert (folder / "export.json").is_file()


def test_a_cached_student_is_used_if_its_record_cannot_be_downloaded(repository):
    folder, _ = repository({"bitkd": {}}, cached=["model.safetensors"])  # the download finds no repository
    assert resolve_pretrained("someone/student") == folder
