"""A wandb sweep file: read, checked against wandb's own schema and bitkd's configuration; its command as an agent composes it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import sweeps
import yaml
from jsonschema import ValidationError
from sweeps.config.schema import fill_parameter
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from bitkd.config.load import load_config
from bitkd.config.schema import Config
from bitkd.errors import InputError, nearest
from bitkd.pipeline.plan import check_settings

METHODS = ("grid", "random", "bayes")

METRIC = "dev/score"
"""What every run ends in: the final student's primary metric on the first dev set, larger is better."""

COMMAND = 'command: ["${env}", bitkd, run, "${args_no_hyphens}"]'

_MACROS = ("env", "interpreter", "program")


@dataclass(frozen=True)
class SweepSpec:
    """A checked sweep file.  content: as wandb's schema fills it.  settings: key=value for all trials, beside the file's."""

    file: Path
    name: str
    content: dict[str, Any]
    settings: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        return self.content["method"]

    @property
    def run_cap(self) -> int | None:
        """The largest number of trials."""
        return self.content["run_cap"]

    @property
    def target(self) -> float | None:
        """The score that ends the sweep."""
        return self.content["metric"].get("target")

    def command(self, parameters: Mapping[str, Any], *more: str) -> list[str]:
        """The words that `wandb agent` would start a trial with (wandb_agent.Agent._command_run); more: key=value."""
        given = dict(parameters) | dict(text.split("=", 1) for text in (*self.settings, *more))
        macros = create_sweep_command_args({"args": {key: {"value": value} for key, value in given.items()}})
        macros |= {
            "env": ["/usr/bin/env"],
            "interpreter": ["python"],
            "program": [str(self.content.get("program", ""))],
        }
        words: list[str] = []
        for word in map(str, create_sweep_command(list(self.content["command"]))):  # a list of its own: it is changed
            whole = word.startswith("${") and word.endswith("}")
            words += macros[word[2:-1]] if whole else [word]
        return words

    def config(self, parameters: Mapping[str, Any], check: bool = False) -> Config:
        """The configuration of a trial; InputError names the nearest right key.

        check: refuse what its run would refuse before any look at models or data, too.
        """
        try:
            config = load_config(_overrides(self.command(parameters), self.file))
            if check:
                check_settings(config)
            return config
        except InputError as error:
            shown = " ".join(f"{key}={value}" for key, value in parameters.items())
            given = f" with {' '.join(self.settings)}" if self.settings else ""
            raise InputError(f"{self.file}: the trial {shown}{given} cannot be run: {error}") from error


def read_sweep(file: str, settings: Sequence[str] = ()) -> SweepSpec:
    """The sweep in `file`, checked but for its parameters' keys (see `SweepSpec.config`)."""
    path = Path(file).expanduser()
    content = _read(path)
    _check_method(path, content)
    _check_parameters(path, content)
    # run_cap is wandb's server's; the schema of this version does not know it.
    known = {key: value for key, value in content.items() if key != "run_cap"}
    try:
        wrong = sweeps.schema_violations_from_proposed_config(known)
        filled = {} if wrong else dict(sweeps.SweepConfig(known)) | {"run_cap": content.get("run_cap")}
    except (ValueError, ValidationError) as error:
        wrong = [str(error)]
    if wrong:
        raise InputError(f"{path} is no sweep by wandb's schema: {'; '.join(wrong)}")
    _check_metric(path, filled)
    _check_command(path, content)
    for text in settings:
        key, equals, _ = text.partition("=")
        if not equals or not key:
            raise InputError(f"'{text}' is no setting; write key=value")
        if key == "run.name":
            raise InputError("run.name= is each trial's own in a sweep; leave it out, or give the file a name:")
        if "value" not in filled["parameters"].get(key, {"value": ""}):
            raise InputError(f"{key}= is swept by {path}; leave it out, or change the file")
        filled["parameters"].pop(key, None)  # one value for all trials: the setting's
    if not filled["parameters"]:
        raise InputError(f"{path}: the settings leave no parameter to sweep; use `bitkd run`")
    return SweepSpec(path, str(content.get("name") or path.stem), filled, tuple(settings))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); name a wandb sweep file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no mapping; write method:, metric:, parameters: and command:")
    name = str(content.get("name", ""))
    if name and not re.fullmatch(r"\w[\w.-]*( [\w.-]+)*", name):
        raise InputError(
            f"{path}: name: {name} becomes a folder's name and a setting; write it in letters, digits, _, - and ., the first a "
            "letter, digit or _"
        )
    return content


def _check_method(path: Path, content: dict[str, Any]) -> None:
    method = content.get("method")
    if method not in METHODS:
        if method is None:
            raise InputError(f"{path}: method: is missing; write one of {', '.join(METHODS)}")
        raise InputError(f"{path}: method: {method} is unknown; {nearest(str(method), METHODS)}")
    if method != "grid" and "run_cap" not in content:
        raise InputError(f"{path}: method: {method} never ends by itself; write run_cap: 20, the number of trials")
    cap = content.get("run_cap", 1)
    if not isinstance(cap, int) or cap < 1:
        raise InputError(f"{path}: run_cap: {cap} is no number of trials; write a whole number from 1 on")
    if "early_terminate" in content:
        raise InputError(
            f"{path}: early_terminate: is not possible: a trial is a chain of stages, and what an early stage scores says "
            "nothing of the last; leave it out, or sweep shorter stages"
        )


def _check_parameters(path: Path, content: dict[str, Any]) -> None:
    parameters = content.get("parameters")
    if not isinstance(parameters, dict) or not parameters:
        raise InputError(f"{path}: parameters: is missing; write them as `train.lr: {{values: [2.0e-5, 1.0e-4]}}`")
    for key, spec in parameters.items():
        if not isinstance(key, str):
            raise InputError(f"{path}: parameters.{key}: is no name; write a setting's, such as train.lr:")
        if isinstance(spec, dict) and "parameters" in spec:
            raise InputError(f"{path}: parameters.{key}: is nested; write dotted keys, such as {key}.NAME:")
        if key == "run.name":
            raise InputError(f"{path}: parameters.run.name: is each trial's own; leave it out")
        try:
            known = isinstance(spec, dict) and fill_parameter(key, spec)
        except ValueError as error:
            raise InputError(f"{path}: parameters.{error}") from error
        if not known:
            raise InputError(
                f"{path}: parameters.{key}: {spec} says no values by wandb's schema; write values: [...], value: ..., or "
                "min: and max: with a distribution: (YAML reads numbers with a point: 2.0e-5, not 2e-5)"
            )
        for value in [spec.get("value", ""), *spec.get("values", [])]:
            if value is None:
                raise InputError(f"{path}: parameters.{key}: null reaches a command as None; write 'null' in quotes")
            if isinstance(value, date):
                raise InputError(f"{path}: parameters.{key}: YAML reads {value} as a date; write it in quotes")


def _check_metric(path: Path, content: dict[str, Any]) -> None:
    found = content.get("metric", {})
    if found.get("name") != METRIC or found.get("goal") != "maximize":
        raise InputError(
            f"{path}: metric: {found or 'is missing'}; write metric: {{name: {METRIC}, goal: maximize}}, the final student's "
            "primary metric (without a goal wandb takes minimize)"
        )


def _check_command(path: Path, content: dict[str, Any]) -> None:
    command = [str(word) for word in content.get("command", [])]
    if "${args_no_hyphens}" not in command:
        raise InputError(f"{path}: command: does not hand the parameters on as key=value; write {COMMAND}")
    for word in command:
        if word.startswith("${") and word.endswith("}") and word[2:-1] not in (*_MACROS, "args_no_hyphens"):
            raise InputError(f"{path}: command: {word} is of no use to bitkd; write {COMMAND}")
    _overrides(command, path)


def _overrides(words: list[str], path: Path) -> list[str]:
    """The settings in a command of `bitkd run`."""
    found = words[place_of_bitkd(words, path) + 2 :]
    if any(text.startswith("-") for text in found):
        raise InputError(f"{path}: command: `bitkd run` takes key=value here, no options; write {COMMAND}")
    return found


def place_of_bitkd(words: list[str], path: Path) -> int:
    """Where `bitkd run` stands in a command; InputError where it does not."""
    for position, word in enumerate(words):
        if Path(word).name == "bitkd" and words[position + 1 : position + 2] == ["run"]:
            return position
    raise InputError(f"{path}: command: does not start `bitkd run`; write {COMMAND}")
