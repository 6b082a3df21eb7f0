"""What happens when the hub's client fails in the middle of a download."""

import httpx2
import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from bitkd.data import hub
from bitkd.errors import InputError


def test_a_connection_that_breaks_in_a_download_is_an_input_error(monkeypatch):
    def snapshot_download(name, local_files_only, **_):
        if local_files_only:
            raise LocalEntryNotFoundError("not in the cache")
        raise httpx2.ReadTimeout("the read operation timed out")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(hub, "hub_problem", lambda: None)
    with pytest.raises(InputError, match="cannot be loaded from the hub: the read operation timed out; check the id"):
        hub.resolve_pretrained("someone/some-bert")
