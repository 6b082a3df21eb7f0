"""A wandb sweep file: read, checked against bitkd's configuration and wandb's schema; its command as wandb agent builds it."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

from bitkd.config.load import load_config
from bitkd.config.schema import Config
from bitkd.config.typed import compose
from bitkd.errors import InputError, nearest
from bitkd.names import LONGEST_NAME, check_name, shown
from bitkd.pipeline.checks import check_paths
from bitkd.pipeline.plan import check_settings
from bitkd.processes.machine import check_machine
from bitkd.stages.spec import SCORE
from bitkd.store.records import LARGEST
from bitkd.sweep.text import sweep_data

METHODS = ("grid", "random", "bayes")

COMMAND = 'command: ["${env}", bitkd, run, "${args_no_hyphens}"]'

_MACROS = ("env", "interpreter", "program")

_ENVIRONMENT_VARIABLE = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")  # as wandb.sdk.launch.sweeps.utils has it

_PATH = re.compile(r"PATH=([^$]+|([^$]+:)?\$\{envvar:PATH\}(:[^$]+)?)")

_VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM", "HF_HUB_OFFLINE",
              "WANDB_MODE")  # fmt: skip
"""Variables that a command may set. Others could make a trial run other code, or send its results elsewhere."""


@dataclass(frozen=True)
class SweepSpec:
    """A checked sweep file."""

    file: Path
    name: str
    content: dict[str, Any]
    """With the defaults of wandb's schema."""

    settings: tuple[str, ...] = ()
    """key=value for all trials, besides those of the file."""

    _configs: dict[tuple[str, ...], Config] = field(default_factory=dict, repr=False, compare=False)
    """Settings of a trial -> its configuration, which takes a tenth of a second to load."""

    @property
    def method(self) -> str:
        """grid, random or bayes."""
        return self.content["method"]

    @property
    def run_cap(self) -> int | None:
        """The largest number of trials; None if a grid has no limit."""
        return self.content["run_cap"]

    @property
    def target(self) -> float | None:
        """The score that ends the sweep."""
        return self.content["metric"].get("target")

    def command(self, parameters: Mapping[str, Any], *more: str) -> list[str]:
        """The command line of a trial, as `wandb agent` builds it (wandb_agent.Agent._command_run).  more: key=value."""
        given = dict(parameters) | dict(text.split("=", 1) for text in (*self.settings, *more))
        macros = {
            "args_no_hyphens": [f"{key}={value}" for key, value in given.items()],
            "env": ["/usr/bin/env"],
            "interpreter": ["python"],
            "program": [str(self.content.get("program", ""))],
        }
        words: list[str] = []
        for word in map(str, self.content["command"]):
            word = _ENVIRONMENT_VARIABLE.sub(lambda found: os.environ.get(found[1], found[1]), word)
            is_macro = word.startswith("${") and word.endswith("}")
            words += macros[word[2:-1]] if is_macro else [word]
        return words

    def config(self, parameters: Mapping[str, Any], check: bool = False, paths: bool = False) -> Config:
        """The configuration of a trial.

        check: also make the checks that need neither models nor data.  paths: also check that its files exist, and that
        this machine has the processors.

        Raises InputError if the trial's settings are wrong.
        """
        settings = _overrides(self.command(parameters), self.file)
        key = tuple(sorted(settings))
        try:
            if key not in self._configs:
                self._configs[key] = load_config(settings)
            if check:
                check_settings(self._configs[key])
            if paths:
                check_paths(self._configs[key])
                check_machine(self._configs[key].trainer)
            return self._configs[key]
        except InputError as error:
            shown = " ".join(f"{key}={value}" for key, value in parameters.items())
            given = f" with {' '.join(self.settings)}" if self.settings else ""
            raise InputError(f"{self.file}: the trial {shown}{given} cannot be run: {error}") from error


def read_sweep(file: str, settings: Sequence[str] = (), paths: bool = False) -> SweepSpec:
    """The sweep in `file`.  settings: key=value for all trials.  paths: check that the trials' files exist.

    Raises InputError if the file or a setting is wrong. Each listed value is checked here; combinations of values are
    checked in `Sweep.open`. The checks that need no engine come first, because loading the engine takes seconds.
    """
    path = Path(file).expanduser()
    content = _read(path)
    _check_method(path, content)
    _check_parameters(path, content)
    _check_metric(path, content)
    _check_command(path, content)
    parameters = _without_settings(path, content["parameters"], settings)
    name = str(content.get("name") or path.stem)
    check_name(name, f"{path}: name: ", LONGEST_NAME - len("-01234567"))  # a trial adds a hash to it
    spec = SweepSpec(path, name, content, tuple(settings))
    for listed in listed_values(parameters):
        spec.config(listed, check=True, paths=paths)

    from bitkd.sweep.engine import fill_content

    filled = fill_content(path, content)
    filled["parameters"] = {key: filled["parameters"][key] for key in parameters}
    return replace(spec, content=filled)


def listed_values(parameters: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The first value of each parameter together, then each other listed value in place of the first.

    A distribution is represented by its smallest value, or left out if the file does not give one.
    """
    values = {key: _values_of(parameter) for key, parameter in parameters.items() if isinstance(parameter, dict)}
    first = {key: listed[0] for key, listed in values.items() if listed}
    yield first
    yield from (first | {key: value} for key, listed in values.items() for value in listed[1:])


def _values_of(parameter: Mapping[str, Any]) -> list[Any]:
    if "value" in parameter:
        return [parameter["value"]]
    if isinstance(parameter.get("values"), list):
        return parameter["values"]
    logarithmic = "log" in str(parameter.get("distribution", "")) and "values" not in parameter["distribution"]
    return [parameter["min"]] if "min" in parameter and not logarithmic else []


def may_propose(parameters: Mapping[str, Any], kept: Mapping[str, Any]) -> bool:
    """Whether a trial's settings are such as the file gives.  kept: the settings that a trial's file recorded."""
    return kept.keys() == parameters.keys() and all(_gives(parameters[key], value) for key, value in kept.items())


def _gives(parameter: Mapping[str, Any], value: Any) -> bool:
    listed = _values_of(parameter)
    if "value" in parameter or "values" in parameter:
        return value in listed
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    kind = parameter.get("distribution")
    low, high = parameter.get("min", -LARGEST), parameter.get("max", LARGEST)
    is_whole = kind == "int_uniform" or (kind is None and isinstance(low, int) and isinstance(high, int))
    step = parameter.get("q", 1) if str(kind).startswith("q_") else 0  # to which values are rounded
    is_within = low - step - 1e-9 * abs(low) <= value <= high + step + 1e-9 * abs(high)
    return is_within and (value % 1 == 0 or not is_whole)


def _without_settings(path: Path, parameters: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """The parameters that no setting replaces. Raises InputError if a setting is wrong or replaces a swept one."""
    left = dict(parameters)
    for text in settings:
        key, equals, _ = text.partition("=")
        if not equals or not key:
            raise InputError(f"'{text}' is no setting; write key=value")
        if key == "run.name":
            raise InputError("run.name= is each trial's own in a sweep; leave it out, or give the file a name:")
        if "value" not in left.get(key, {"value": ""}):
            raise InputError(f"{key}= is swept by {path}; leave it out, or change the file")
        left.pop(key, None)
    if not left:
        raise InputError(f"{path}: the settings leave no parameter to sweep; use `bitkd run`")
    return left


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); name a wandb sweep file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    content = sweep_data(compose(text, str(path)))
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no mapping; write method:, metric:, parameters: and command:")
    name = str(content.get("name", ""))
    if name and not re.fullmatch(r"\w[\w.-]*( [\w.-]+)*", name):
        raise InputError(
            f"{path}: name: {shown(name)} becomes a folder's name and a setting; write it in letters, digits, _, - and ., the "
            "first a letter, digit or _"
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
            f"{path}: early_terminate: is not possible: a trial is a chain of stages, and an early stage's score says "
            "nothing about the last; leave it out, or sweep shorter stages"
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
        for value in _values_of(spec) if isinstance(spec, dict) else []:
            if value is None:
                raise InputError(f"{path}: parameters.{key}: null reaches a command as None; write 'null' in quotes")
            if isinstance(value, date):
                raise InputError(f"{path}: parameters.{key}: YAML reads {value} as a date; write it in quotes")


def _check_metric(path: Path, content: dict[str, Any]) -> None:
    found = content.get("metric", {})
    if found.get("name") != SCORE or found.get("goal") != "maximize":
        raise InputError(
            f"{path}: metric: {found or 'is missing'}; write metric: {{name: {SCORE}, goal: maximize}}, the final student's "
            "primary metric (without a goal wandb takes minimize)"
        )


def _check_command(path: Path, content: dict[str, Any]) -> None:
    command = [str(word) for word in content.get("command", [])]
    if "${args_no_hyphens}" not in command:
        raise InputError(f"{path}: command: does not pass the parameters as key=value; write {COMMAND}")
    for word in command:
        if word.startswith("${") and word.endswith("}") and word[2:-1] not in (*_MACROS, "args_no_hyphens"):
            raise InputError(f"{path}: command: {word} is not supported; write {COMMAND}")
    settings = _overrides(command, path)
    if odd := next((word for word in settings if word != "${args_no_hyphens}" and "$" in word), None):
        raise InputError(f"{path}: command: {shown(odd)} is not supported; write the value itself")
    starter = command[: place_of_bitkd(command, path)]
    if starter and starter[0] in ("${env}", "env", "/usr/bin/env"):
        starter = starter[1:]
        while starter and (_PATH.fullmatch(starter[0]) or _is_assignment(starter[0])):
            starter = starter[1:]
    if starter and not (
        len(starter) == 2 and starter[0] in ("${interpreter}", "python", "python3") and starter[1] == "-m"
    ):
        raise InputError(
            f"{path}: command: {shown(' '.join(starter))} before bitkd is not supported: a sweep file starts only bitkd, and "
            f"sets no variables but PATH, CUDA_VISIBLE_DEVICES and the like; set others in your shell, and write {COMMAND}"
        )


def _is_assignment(word: str) -> bool:
    name, equals, value = word.partition("=")
    return bool(equals) and name in _VARIABLES and "$" not in value


def _overrides(words: list[str], path: Path) -> list[str]:
    """The settings in a command of `bitkd run`."""
    found = words[place_of_bitkd(words, path) + 2 :]
    if any(text.startswith("-") for text in found):
        raise InputError(f"{path}: command: `bitkd run` takes key=value here, no options; write {COMMAND}")
    return found


def place_of_bitkd(words: list[str], path: Path) -> int:
    """Position of `bitkd` in a command. Raises InputError if the command does not start `bitkd run`."""
    for position, word in enumerate(words):
        if Path(word).name == "bitkd" and words[position + 1 : position + 2] == ["run"]:
            return position
    raise InputError(f"{path}: command: does not start `bitkd run`; write {COMMAND}")
