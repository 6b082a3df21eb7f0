"""Loading from the Hugging Face hub, in bounded time; local paths and the local cache are looked at first."""

import os
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bitkd.errors import InputError

PROBE_SECONDS = 8
MODEL_FILES = ["config.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "*.model"]


def resolve_pretrained(name: str, setting: str = "model.pretrained=") -> Path:
    """A local folder with the model `name`: itself if it is a folder, else a hub snapshot (cached, or downloaded now).

    Raises InputError within 20 seconds where the hub cannot be reached; its message names `setting`.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise InputError(f"{setting} {name}: there is no such folder; give an existing folder or a hub id")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    def download(weights: str, local: bool) -> Path:
        patterns = [*MODEL_FILES, weights]
        return Path(
            snapshot_download(name, allow_patterns=patterns, local_files_only=local, etag_timeout=PROBE_SECONDS)
        )

    try:
        cached = download("*.safetensors", local=True)
        if any(cached.glob("*.safetensors")) or any(cached.glob("*.bin")):
            return cached
    except (LocalEntryNotFoundError, HFValidationError, OSError, ValueError):
        pass  # not in the cache: ask the hub
    if not hub_reachable():
        raise InputError(
            f"{setting} {name} is no local folder, is not in the local cache, and the hub cannot be reached; give a local "
            f"folder with {setting.rstrip('=')}=FOLDER, or try again with a connection"
        )
    try:
        found = download("*.safetensors", local=False)
        if not any(found.glob("*.safetensors")):
            # Older models have no safetensors; transformers reads this file with weights_only.
            found = download("pytorch_model.bin", local=False)
        return found
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise InputError(
            f"{setting} {name} cannot be loaded from the hub: {_first_line(error)}; check the id"
        ) from error


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer in a local folder; InputError where it has none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder} has no tokenizer ({_first_line(error)}); name a folder with tokenizer files"
        ) from error


def load_hub_dataset(path: str, name: str | None) -> Any:
    """A datasets.DatasetDict from the local cache or the hub.

    Raises InputError within 20 seconds where neither has it; its message names data.dir=.
    """
    import datasets

    label = f"{path}/{name}" if name else path
    reachable = hub_reachable()
    datasets.config.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE or not reachable
    try:
        return datasets.load_dataset(path, name)
    except Exception as error:  # datasets raises many types for "not there"
        reason = _first_line(error) if reachable else "the hub cannot be reached and the local cache has no copy"
        raise InputError(
            f"the dataset {label} cannot be loaded: {reason}; give the task's files with data.dir=FOLDER, or try again "
            "with a connection"
        ) from error


def hub_reachable() -> bool:
    """Whether something listens at the hub's endpoint (HF_ENDPOINT, HF_HUB_OFFLINE and proxies are respected)."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return False
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT") or constants.ENDPOINT)
    proxy = os.environ.get(f"{endpoint.scheme.upper()}_PROXY") or os.environ.get(f"{endpoint.scheme}_proxy")
    target = urlsplit(proxy) if proxy else endpoint
    port = target.port or (443 if target.scheme == "https" else 80)
    try:
        socket.create_connection((target.hostname or "", port), timeout=PROBE_SECONDS).close()
    except OSError:
        return False
    return True


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
