"""`bitkd push`: only an exported folder is uploaded, and only what export wrote. The hub is replaced."""

import json
from types import SimpleNamespace

import pytest

from bitkd.cli import main
from bitkd.store.exports import write_export
from bitkd.store.records import ExportRecord


class Hub:
    """Stands in for HfApi: remembers what it was asked for."""

    def __init__(self):
        self.calls = []
        self.private = True
        self.error = None

    def create_repo(self, repo_id, **settings):
        self.calls.append(("create_repo", repo_id, settings))
        if self.error:
            raise self.error
        return SimpleNamespace(repo_id=f"me/{repo_id.rpartition('/')[2]}")

    def model_info(self, repo_id):
        return SimpleNamespace(private=self.private)

    def create_branch(self, repo_id, **settings):
        self.calls.append(("create_branch", repo_id, settings))

    def create_commit(self, **settings):
        self.calls.append(("create_commit", settings.pop("repo_id"), settings))
        return SimpleNamespace(commit_url="https://hub/commit/1")


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "secret")
    monkeypatch.setattr("bitkd.commands.push.hub_problem", lambda: None)
    return hub


@pytest.fixture
def folder(tmp_path):
    """An exported folder, with files beside it that are nobody's to upload."""
    folder = tmp_path / "exported"
    folder.mkdir()
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        (folder / name).write_text(name)
    write_export(folder, ExportRecord(1, "packed", "rte", 2, "", "", "", {}))
    (folder / "README.md").write_text("# card\n")
    (folder / ".hidden").write_text("secret")
    (folder / "train.log").write_text("secret")
    (folder / "logs").mkdir()
    (folder / "logs" / "model.safetensors").write_text("secret")
    return folder


OWN = ["config.json", "model.safetensors", "tokenizer.json", "export.json", "README.md"]


def test_only_the_files_of_the_export_are_uploaded(folder, hub, capsys):
    assert main(["push", str(folder), "me/model"]) == 0
    assert capsys.readouterr().out == "5 files: https://hub/commit/1\n"
    (created, repo, settings), (uploaded, _, upload) = hub.calls
    assert (created, repo, settings) == ("create_repo", "me/model", {"private": None, "exist_ok": True})
    contents = {item.path_in_repo: item.path_or_fileobj for item in upload["operations"]}
    assert (uploaded, list(contents), upload["revision"]) == ("create_commit", OWN, None)
    assert contents["model.safetensors"] == str(folder / "model.safetensors")


def test_the_code_of_the_uploaded_card_names_the_repository(folder, hub):
    (folder / "README.md").write_text('mine\nmodel = AutoModel.from_pretrained("FOLDER")\n')
    assert main(["push", str(folder), "model"]) == 0
    [card] = [item.path_or_fileobj for item in hub.calls[-1][2]["operations"] if item.path_in_repo == "README.md"]
    assert card.decode() == 'mine\nmodel = AutoModel.from_pretrained("me/model")\n'
    assert "FOLDER" in (folder / "README.md").read_text()


def test_a_branch_and_a_private_repository(folder, hub, capsys):
    assert main(["push", str(folder), "model", "--private", "--revision", "v1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"repo": "model", "url": "https://hub/commit/1", "files": OWN}
    assert [call[0] for call in hub.calls] == ["create_repo", "create_branch", "create_commit"]
    assert hub.calls[0][2]["private"] is True
    assert (hub.calls[1][2]["branch"], hub.calls[2][2]["revision"]) == ("v1", "v1")


def test_nothing_private_goes_to_a_public_repository(folder, hub, capsys):
    hub.private = False
    assert main(["push", str(folder), "model", "--private"]) == 2
    assert "me/model exists and is public" in capsys.readouterr().err
    assert [call[0] for call in hub.calls] == ["create_repo"]


def test_a_damaged_or_changed_folder_is_refused(folder, hub, capsys):
    (folder / "model.safetensors").write_text("other")
    assert main(["push", str(folder), "me/model"]) == 2
    assert "model.safetensors has checksum" in capsys.readouterr().err
    (folder / "model.safetensors").unlink()
    assert main(["push", str(folder), "me/model"]) == 2
    assert "model.safetensors is missing" in capsys.readouterr().err
    assert hub.calls == []


@pytest.mark.parametrize("name", ["config.json", "README.md"])
def test_links_are_not_followed(name, folder, hub, tmp_path, capsys):
    (tmp_path / "elsewhere").write_bytes((folder / name).read_bytes())
    (folder / name).unlink()
    (folder / name).symlink_to(tmp_path / "elsewhere")
    assert main(["push", str(folder), "me/model"]) == 2
    assert f"{name} is missing or a link" in capsys.readouterr().err
    assert hub.calls == []


def test_only_exports_are_pushed(finished, tiny_bert, hub, tmp_path, capsys):
    run = finished / "rte" / "singlestage"
    for folder, message in (
        (run / "single_binary", "is an artifact, the state of a training; export it first"),
        (run, "is a run; name one of its stages"),
        (tiny_bert, "is no exported folder"),
        (tmp_path / "absent", "no such folder"),
    ):
        assert main(["push", str(folder), "me/model"]) == 2
        assert message in capsys.readouterr().err
    assert hub.calls == []


def test_without_a_token_or_a_connection_nothing_is_tried(folder, hub, monkeypatch, capsys):
    monkeypatch.setattr("bitkd.commands.push.hub_problem", lambda: "no route to host")
    assert main(["push", str(folder), "me/model"]) == 1
    assert "the hub cannot be reached (no route to host); nothing was uploaded" in capsys.readouterr().err
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert main(["push", str(folder), "me/model"]) == 2
    assert "there is no token" in capsys.readouterr().err
    assert main(["push", str(folder), "a/b/c"]) == 2
    assert "is no id of a repository" in capsys.readouterr().err
    assert hub.calls == []


def test_what_the_hub_refuses_is_a_failure(folder, hub, capsys):
    hub.error = RuntimeError("403 Forbidden: you may not write here\nmore")
    assert main(["push", str(folder), "other/model"]) == 1
    assert (
        capsys.readouterr().err
        == f"bitkd: {folder} was not uploaded to other/model: 403 Forbidden: you may not write here\n"
    )
