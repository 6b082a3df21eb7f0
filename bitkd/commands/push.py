"""The command push: an exported folder to the Hugging Face hub."""

import argparse
from pathlib import Path
from typing import Any

from bitkd.commands.checkpoints import check_folder
from bitkd.commands.output import print_error, print_json
from bitkd.data.hub import hub_problem
from bitkd.errors import InputError
from bitkd.store.artifacts import STAGE_FILE
from bitkd.store.exports import CARD_FILE, EXPORT_FILE, is_export, read_export


def push_command(arguments: argparse.Namespace) -> int:
    """Upload an exported folder; returns the exit code."""
    folder = Path(arguments.folder).expanduser()
    names = _own_files(arguments.folder, folder)
    _check_repo(arguments.repo)
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise InputError("there is no token of the Hugging Face hub; log in with `hf auth login`, or set HF_TOKEN")
    if problem := hub_problem():
        print_error(f"the hub cannot be reached ({problem}); nothing was uploaded")
        return 1
    try:
        address = _upload(HfApi(), folder, names, arguments)
    except InputError:
        raise
    except Exception as error:  # huggingface_hub raises many types, some from its HTTP library
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        print_error(f"{arguments.folder} was not uploaded to {arguments.repo}: {first}")
        return 1
    if arguments.json:
        print_json({"repo": arguments.repo, "url": address, "files": names})
    else:
        print(f"{len(names)} files: {address}")
    return 0


def _own_files(name: str, folder: Path) -> list[str]:
    """Names of the files that export wrote. Raises InputError if the folder is no export, or is damaged."""
    if not folder.is_dir():
        raise InputError(f"{name}: there is no such folder; name one that `bitkd export` wrote")
    check_folder(name, folder)
    if (folder / STAGE_FILE).is_file():
        raise InputError(f"{name} is an artifact, the state of a training; export it first: bitkd export {name} FOLDER")
    if not is_export(folder):
        raise InputError(f"{name} is no exported folder: it has no {EXPORT_FILE}; name one that `bitkd export` wrote")
    names = [*read_export(folder).checksums, EXPORT_FILE, CARD_FILE]
    for file in names:
        if (folder / file).is_symlink() or not (folder / file).is_file():
            raise InputError(f"{folder / file} is missing or a link; export the artifact again")
    return names


def _check_repo(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f"{repo!r} is no id of a repository ({error}); use NAME or OWNER/NAME") from error


def _upload(api: Any, folder: Path, names: list[str], arguments: argparse.Namespace) -> str:
    """The address of the upload, one commit. Its card names the repository in the code; the folder's own card is not changed."""
    from huggingface_hub import CommitOperationAdd

    from bitkd.export.card import card_for_hub

    repo = str(api.create_repo(arguments.repo, private=arguments.private or None, exist_ok=True).repo_id)
    if arguments.private and not api.model_info(repo).private:
        raise InputError(f"{repo} exists and is public; make it private first, or leave --private out")
    if arguments.revision:
        api.create_branch(repo, branch=arguments.revision, exist_ok=True)
    card = card_for_hub((folder / CARD_FILE).read_text(encoding="utf-8"), repo, arguments.revision)
    contents = {name: folder / name for name in names} | {CARD_FILE: card.encode()}
    done = api.create_commit(
        repo_id=repo,
        operations=[CommitOperationAdd(name, content) for name, content in contents.items()],
        revision=arguments.revision,
        commit_message="Upload of an export of bitkd",
    )
    return str(done.commit_url)
