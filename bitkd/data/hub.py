"""Loads from the Hugging Face hub within a time limit; local folders and the local cache come first."""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bitkd.errors import InputError, shorten
from bitkd.files import read_json
from bitkd.pretrained.files import ONNX_FILE, ONNX_RECORD, check_no_pointers
from bitkd.store.exports import EXPORT_FILE

PROBE_SECONDS = 8
"""Seconds that the hub may take to answer. Without an answer, only local files are used."""

SAMPLED_ROWS = 1000
"""Rows of a task on which tokenizers are examined."""

TOKENIZER_FILES = ("tokenizer.json", "vocab.*", "*.model")
TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
MODEL_FILES = ["config.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "*.model"]
MODEL_FILES += ["*.safetensors.index.json", EXPORT_FILE]


def resolve_pretrained(name: str, setting: str = "model.pretrained=") -> Path:
    """A local folder with the model `name`: the folder itself, or a snapshot of a hub id (cached, or downloaded now).

    Raises InputError if there is none, within 20 seconds if the hub cannot be reached; its message begins with `setting`.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise InputError(f"{setting}{name}: there is no such folder; give an existing folder or a hub id")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    def download(weights: str, local: bool = False) -> Path:
        patterns = [*MODEL_FILES, weights]
        return Path(
            snapshot_download(name, allow_patterns=patterns, local_files_only=local, etag_timeout=PROBE_SECONDS)
        )

    usable = None
    try:
        cached = download("*.safetensors", local=True)
        weights = any(cached.glob("*.safetensors")) or (cached / "pytorch_model.bin").is_file()
        weights = (cached / ONNX_FILE).is_file() if _is_onnx(cached) else weights
        if weights and has_tokenizer(cached):
            if not _may_lack_record(cached):
                return cached
            usable = cached
    except (LocalEntryNotFoundError, HFValidationError, OSError, ValueError):
        pass  # not in the cache: ask the hub
    problem = hub_problem()
    if problem and usable:
        return usable
    if problem:
        folders = f"a local folder with {setting}FOLDER" if setting.endswith("=") else "a local folder"
        near = (
            f" (the folder {folder.parent} has no {folder.name})"
            if len(folder.parts) == 2 and folder.parent.is_dir()
            else ""
        )
        raise InputError(
            f"{setting}{name} is no local folder{near}, is not in the local cache, and the hub cannot be reached ({problem}); "
            f"give {folders}, or try again with a connection"
        )
    try:
        found = download("*.safetensors")
        if _is_onnx(found):
            found = download(ONNX_FILE)
        elif not any(found.glob("*.safetensors")):
            # Older models have no safetensors; transformers reads this file with weights_only.
            found = download("pytorch_model.bin")
        return found
    except Exception as error:  # huggingface_hub raises many types for "not there", some from its HTTP library
        if usable:
            return usable
        raise InputError(
            f"{setting}{name} cannot be loaded from the hub: {_first_line(error)}; check the id"
        ) from error


def _is_onnx(folder: Path) -> bool:
    return ONNX_RECORD in _config_of(folder)


def _may_lack_record(folder: Path) -> bool:
    """Whether a cached student has no record of its task: transformers downloads only the files that it reads."""
    return bool({"bitkd", ONNX_RECORD} & _config_of(folder).keys()) and not (folder / EXPORT_FILE).is_file()


def _config_of(folder: Path) -> dict[str, Any]:
    """The content of config.json; empty if there is none, or a damaged one."""
    content = read_json(folder / "config.json")
    return content if isinstance(content, dict) else {}


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer in a local folder. Raises InputError if it has none, if its files are damaged, or if it has tokens
    that the model in the same folder has no embeddings for.
    """
    from transformers import AutoTokenizer

    folder = Path(folder)
    check_no_pointers(file for pattern in (*TOKENIZER_FILES, *TOKENIZER_SETTINGS) for file in folder.glob(pattern))
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise many types, Exception itself among them
        raise InputError(
            f"{folder} has no tokenizer ({_first_line(error)[:300]}); name a folder with tokenizer files"
        ) from error
    # From config.json alone, transformers makes a tokenizer of special tokens only, and does not warn.
    files = {"tokenizer.json", *tokenizer.vocab_files_names.values()}
    if not any((folder / file).is_file() for file in files):
        raise InputError(f"{folder} has no tokenizer (none of {sorted(files)}); name a folder with tokenizer files")
    embeddings, tokens = _config_of(folder).get("vocab_size"), tokenizer_size(tokenizer)
    if isinstance(embeddings, int) and tokens > embeddings:
        token = max(tokenizer.get_vocab().items(), key=lambda item: item[1])[0]
        raise InputError(
            f"{folder}: its tokenizer has {tokens} tokens (the last one is {shorten(token)}), its model {embeddings} "
            f"embeddings; save the model after model.resize_token_embeddings({tokens}), or a tokenizer without the added "
            "tokens"
        )
    _leave_out_unread_columns(tokenizer, folder)
    return tokenizer


def tokenizer_size(tokenizer: Any) -> int:
    """Embeddings that a model needs for a tokenizer: its largest token, and one."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def _leave_out_unread_columns(tokenizer: Any, folder: Path) -> None:
    """Make no token types for a model in the same folder that has no table of them, or one with a single row."""
    from bitkd.pretrained.load import read_model_config

    if "token_type_ids" not in tokenizer.model_input_names or not (folder / "config.json").is_file():
        return
    config = read_model_config(folder)
    if getattr(config, "type_vocab_size", 0) < 2:
        names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
        tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names


def make_token_types(tokenizer: Any) -> None:
    """Make token types from now on, whatever the model beside the tokenizer reads."""
    if "token_type_ids" not in tokenizer.model_input_names:
        tokenizer.model_input_names = [*tokenizer.model_input_names, "token_type_ids"]


def has_tokenizer(folder: Path) -> bool:
    """Whether a model's folder has a tokenizer."""
    return any(any(folder.glob(pattern)) for pattern in TOKENIZER_FILES)


def token_difference(one: Any, other: Any, rows: list[tuple[str, ...]]) -> str | None:
    """How two tokenizers differ: in their vocabularies, or in the tokens of one of the rows; None if they do not.

    rows: one or two texts each.
    """
    vocabularies = one.get_vocab(), other.get_vocab()
    if different := sorted(vocabularies[0].items() ^ vocabularies[1].items()):
        return f"the vocabularies differ, such as in {shorten(different[0][0])}"
    for row in rows:
        ids = [tokenizer(*row, verbose=False)["input_ids"] for tokenizer in (one, other)]
        if ids[0] != ids[1]:
            place = next((i for i, (a, b) in enumerate(zip(*ids)) if a != b), min(map(len, ids)))
            found, wanted = (
                tokenizer.convert_ids_to_tokens(tokens[max(0, place - 2) : place + 6])
                for tokenizer, tokens in zip((one, other), ids)
            )
            return f"of {shorten(row[0] if len(row) == 1 else row)} it makes {shorten(found)} and not {shorten(wanted)}"
    return None


def sample_rows(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """About SAMPLED_ROWS rows, evenly over all, and every row that has a character which none before it has."""
    seen: set[str] = set()
    step = -(-len(rows) // SAMPLED_ROWS)
    chosen = []
    for number, row in enumerate(rows):
        new = set("".join(row)) - seen
        seen |= new
        if new or number % step == 0:
            chosen.append(row)
    return chosen


def tokenizer_state(tokenizer: Any) -> str:
    """Everything that a tokenizer's tokens depend on. Padding and truncation are left out, because a call may change them."""
    if not tokenizer.is_fast:
        return str((type(tokenizer).__name__, tokenizer.init_kwargs, sorted(tokenizer.get_vocab().items())))
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    return json.dumps(state | {"padding": None, "truncation": None}, sort_keys=True)


def load_hub_dataset(
    path: str,
    name: str | None,
    streaming: bool = False,
    revision: str | None = None,
    setting: str = "the task's files with data.dir=",
) -> Any:
    """A datasets.DatasetDict from the local cache or the hub; an IterableDatasetDict with `streaming`.

    Raises InputError if neither has it, within 20 seconds if the hub cannot be reached; its message names `setting` for
    local files.
    """
    import datasets

    label = f"{path}/{name}" if name else path
    problem = hub_problem()
    try:
        with without_progress_bars(), _offline(problem is not None):
            return datasets.load_dataset(path, name, streaming=streaming, revision=revision)
    except Exception as error:  # datasets raises many types for "not there"
        reason = (
            f"the hub cannot be reached ({problem}) and the local cache has no copy" if problem else _first_line(error)
        )
        raise InputError(
            f"the dataset {label} cannot be loaded: {reason}; give {setting}FOLDER, or try again with a connection"
        ) from error


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Within this context `datasets` shows no progress bars. It has only a global switch for them."""
    import datasets

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


@contextmanager
def _offline(wanted: bool) -> Iterator[None]:
    """If `wanted`, `datasets` uses only its local cache within this context.

    It has only a global switch for this (datasets 5 has no `local_files_only`). It is switched back, because the hub may
    answer at the next call.
    """
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or wanted
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def hub_revision(path: str) -> str:
    """The commit of a dataset on the hub, or of its copy in the local cache. Raises InputError if there is neither."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        if hub_problem() is None:
            return str(HfApi().dataset_info(path, timeout=PROBE_SECONDS).sha)
        return Path(
            snapshot_download(path, repo_type="dataset", allow_patterns="README.md", local_files_only=True)
        ).name
    except Exception as error:  # huggingface_hub raises many types for "not there"
        raise InputError(
            f"the dataset {path} cannot be found on the hub: {_first_line(error)}; check the id"
        ) from error


def hub_problem() -> str | None:
    """Why the hub cannot be used, found within PROBE_SECONDS; None if it answers.

    HF_ENDPOINT, HF_HUB_OFFLINE and proxies count, as in huggingface_hub's own client.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return "HF_HUB_OFFLINE is set"
    endpoint = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    answers: list[str | None] = []

    def ask() -> None:
        try:
            status = get_session().head(endpoint, timeout=PROBE_SECONDS).status_code
        except Exception as error:  # any failure means that the hub did not answer
            answers.append(_first_line(error))
        else:
            answers.append(f"it answers with status {status}" if status >= 500 else None)

    # In a thread, because the timeout limits neither name resolution nor the sum over a host's addresses.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return answers[0] if answers else f"no answer in {PROBE_SECONDS} s"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
