"""The sweep command: runs a wandb sweep file."""

import argparse
import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bitkd.commands.output import print_error, print_json
from bitkd.errors import InputError, StoppedError
from bitkd.names import shown
from bitkd.report.console import Console
from bitkd.report.fitted import FittedTable
from bitkd.stages.spec import SCORE
from bitkd.store.lock import TIMEOUT_SECONDS
from bitkd.sweep.runner import run_sweep
from bitkd.sweep.spec import COMMAND, place_of_bitkd, read_sweep
from bitkd.sweep.trials import Sweep, Trial, TrialState


def sweep_command(arguments: argparse.Namespace) -> int:
    """Run the trials of a sweep file, or show them; returns the exit code."""
    shard = _shard(arguments.shards)
    _put_on_path(str(Path(sys.executable).parent))
    sweep = Sweep.open(read_sweep(arguments.file, arguments.settings, paths=not arguments.dry_run))
    console = Console(stderr=arguments.json)
    _check_starter(sweep, console)
    if arguments.dry_run:
        _show(sweep, arguments.json, shard, commands=True)
        return 0
    try:
        failed = run_sweep(sweep, shard, console)
    except StoppedError as stop:
        print_error(str(stop))
        return stop.code
    _show(sweep, arguments.json, shard)
    for trial in failed:
        print_error(f"trial {trial.name} failed with code {trial.exit_code}; see {trial.log}")
    if failed:
        print_error("run the same command again to try failed trials again")
    return 1 if failed else 0


def _put_on_path(folder: str) -> None:
    """Let trials find the bitkd that runs the sweep, unless another one comes first on the PATH."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    if folder not in folders:
        os.environ["PATH"] = os.pathsep.join([*folders, folder])


def _check_starter(sweep: Sweep, console: Console) -> None:
    """Raises InputError if the trials' command finds no bitkd, or starts a program of the file's choice; prints a note if
    the PATH of this process leads to another bitkd."""
    words = sweep.spec.command(sweep.proposals[0])
    place = place_of_bitkd(words, sweep.spec.file)
    program = words[place - 2] if words[:place][-1:] == ["-m"] else words[place]
    own_path = next((word[5:] for word in reversed(words[:place]) if word.startswith("PATH=")), None)
    path = os.environ["PATH"] if own_path is None else own_path
    found = shutil.which(program, path=path)
    if found is None:
        raise InputError(
            f"{sweep.spec.file}: command: {program} is not found on the trials' PATH ({path}); write {COMMAND}"
        )
    own = Path(sys.executable).parent.resolve()
    for folder in _folders_of_path(sweep.spec.content["command"]):
        if Path(folder).exists() and Path(folder).resolve() != own:
            raise InputError(
                f"{sweep.spec.file}: command: PATH= may name only the folder of this bitkd ({own}), beside ${{envvar:PATH}}; "
                f"{shown(folder)} is another; write {COMMAND}"
            )
    if Path(found).parent.resolve() == own or Path(found).resolve() == (own / "bitkd").resolve():
        return
    if os.path.dirname(program) or found != shutil.which(program):
        raise InputError(
            f"{sweep.spec.file}: command: it would start {found}, which is not the bitkd that checks the trials; write "
            f"{COMMAND}, or start the sweep with the bitkd beside it"
        )
    console.print(f"note: trials are run by {found}, which is not the bitkd that checked them")


def _folders_of_path(command: Sequence[Any]) -> list[str]:
    """The folders that the PATH= of a command names itself."""
    lists = [word[5:] for word in map(str, command) if word.startswith("PATH=")]
    return [folder for text in lists for folder in text.replace("${envvar:PATH}", "$").split(":") if folder != "$"]


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError(
            f"--shards {text} is no shard; write i/n with i from 1 to n, such as 1/4 on the first of four machines"
        )
    return int(found[1]), int(found[2])


def _show(sweep: Sweep, as_json: bool, shard: tuple[int, int], commands: bool = False) -> None:
    """Print the trials, best first.  commands: only those of the shard, with their command lines."""
    trials = [trial for trial in sweep.listed() if not commands or trial.number % shard[1] == shard[0] - 1]
    if not trials:
        raise InputError(f"--shards {shard[0]}/{shard[1]} has no trial: there are {sweep.total}; use fewer shards")
    if as_json:
        rows = [asdict(trial) | ({"command": sweep.command(trial)} if commands else {}) for trial in trials]
        print_json({"sweep": sweep.spec.name, "folder": str(sweep.folder), "total": sweep.total, "trials": rows})
        return
    console = Console()
    keys = list(dict.fromkeys(key for trial in trials for key in trial.parameters))
    given = sweep.spec.content["parameters"]
    common = {key: value for key, value in trials[0].parameters.items() if "value" in given[key]}
    keys = [key for key in keys if key not in common]
    cells = [[trial.name, *_cells(sweep, trial, keys)] for trial in trials]
    console.print(FittedTable(["trial", *keys, SCORE, "seconds", "state"], cells, optional=("seconds",)))
    if common:
        console.print(f"all trials: {' '.join(f'{key}={value}' for key, value in common.items())}")
    if commands:
        words = sweep.command(min(trials, key=lambda trial: trial.number))
        print(f"first command (--json shows all): {' '.join(map(_shell_word, words))}")
    console.print(f"sweep: {sweep.folder}")


def _shell_word(word: str) -> str:
    path = os.environ["PATH"]
    if word.startswith("PATH=") and path in word:
        return f'PATH="{word[5:].replace(path, "$PATH")}"'
    return shlex.quote(word)


def _cells(sweep: Sweep, trial: Trial, keys: list[str]) -> list[str]:
    values = [str(trial.parameters.get(key, "")) for key in keys]
    score = "–" if trial.score is None else f"{trial.score:.4f}"
    dead = trial.state == TrialState.RUNNING and not sweep.lock(trial).is_held(TIMEOUT_SECONDS)
    return [*values, score, f"{trial.seconds:.0f}" if trial.seconds else "–", "killed" if dead else trial.state]
