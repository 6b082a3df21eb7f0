"""Merges the files of `conf/` and dotted overrides into one typed configuration.

`task=`, `pipeline=`, `model=` and `trainer=` choose a file of `conf/`, or give the path of another one. Every file is a
part of the whole configuration. They are merged in this order: config.yaml, model, trainer, pipeline, task, overrides.
"""

import io
import json
import pickle
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from bitkd.config.schema import Config
from bitkd.errors import InputError, choices_of, nearest

RENAMED = {"quant.gradient_clip": "quant.ste_clip"}
"""Old end of a key -> its new name, for settings that earlier versions named otherwise."""

_TYPES: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number, such as 100",
    float: "a number, such as 2e-5",
    list[int]: "a list of whole numbers, such as [1,3,5]",
    list[str]: "a list, such as [one,two]",
}

GROUPS = ("model", "trainer", "pipeline", "task")


def conf_dir() -> Path:
    """The folder of configuration files: in the checkout, or inside the installed package.

    Raises InputError if there is none.
    """
    package = Path(__file__).resolve().parent.parent
    for candidate in (package / "conf", package.parent / "conf"):
        if (candidate / "config.yaml").is_file():
            return candidate
    raise InputError(f"no conf/ folder beside or inside {package}; install bitkd again")


def choices(group: str) -> list[str]:
    """Names that `group=` accepts."""
    return sorted(file.stem for file in (conf_dir() / group).glob("*.yaml"))


def load_config(
    overrides: Sequence[str] = (),
    require: Iterable[str] = ("task", "pipeline"),
    recorded: Mapping[str, Any] | None = None,
) -> Config:
    """The resolved configuration of `overrides`.  require: groups that must be chosen.

    recorded: settings as plain data, nested as in a file. They replace those of files, and dotted overrides replace them.
    Raises InputError if a setting is wrong; the message suggests the nearest known key or name.
    """
    chosen, dotted = _split(overrides)
    for group in require:
        if group not in chosen:
            raise InputError(
                f"{group}= is missing; choose one of {', '.join(choices(group))}, or a path to a YAML file"
            )
    files = [conf_dir() / "config.yaml", *(_file_of(group, chosen[group]) for group in GROUPS if group in chosen)]
    merged = pickle.loads(_merge_files(tuple((file, _read(file)) for file in files), "task" in chosen))
    if recorded:
        merged = _merge(merged, _as_layer(recorded))
    for text in dotted:
        merged = _merge(merged, _parse(text, merged), source=text)
    try:
        for name, stage in merged.stages.items():
            where = f"stages.{name}: "
            OmegaConf.to_object(stage)
        where = ""
        config: Config = OmegaConf.to_object(merged)  # type: ignore[assignment]
    except InputError as error:
        raise InputError(f"{where}{error}") from error
    except OmegaConfBaseException as error:
        raise InputError(f"configuration is incomplete: {_first_line(error)}") from error
    if config.embedding_bits is not None:
        _set_embedding_bits(config, config.embedding_bits)
    return config


def _as_layer(recorded: Mapping[str, Any]) -> DictConfig:
    if "${" in json.dumps(recorded):  # OmegaConf would resolve it, on this machine
        raise InputError("the recorded settings have a '${' in them, which is no text here; give the settings yourself")
    return OmegaConf.create(dict(recorded))


def _set_embedding_bits(config: Config, bits: int) -> None:
    try:
        for stage in config.stages.values():
            if stage.quant.weight_bits < 32 and stage.quant.embedding_bits is None:
                stage.quant = replace(stage.quant, embedding_bits=bits)
    except InputError as error:
        raise InputError(f"embedding_bits={bits}: {error}") from error


def to_yaml(config: Config) -> str:
    """The configuration as YAML, as `bitkd config` prints it."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _split(overrides: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    chosen: dict[str, str] = {}
    dotted = []
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InputError(
                f"'{text}' is no setting; write key=value (`bitkd config task=… pipeline=…` lists the keys)"
            )
        if key in GROUPS:
            chosen[key] = value
        else:
            dotted.append(text)
    return chosen, dotted


def _file_of(group: str, name: str) -> Path:
    if name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser()
        if not path.is_file():
            raise InputError(
                f"{group}={name}: there is no such file; name a YAML file or one of {', '.join(choices(group))}"
            )
        return path
    if name not in choices(group):
        raise InputError(f"{group}={name} is unknown; {nearest(name, choices(group))} (or a path to a .yaml file)")
    return conf_dir() / group / f"{name}.yaml"


@lru_cache(maxsize=64)
def _merge_files(files: tuple[tuple[Path, str], ...], last_is_task: bool) -> bytes:
    """The merged content of (file, text) pairs, pickled: to unpickle it takes 3 ms, to merge again 100 ms."""
    merged: Any = OmegaConf.structured(Config)
    for file, text in files:
        layer = _parse_file(file, text)
        if last_is_task and file == files[-1][0]:
            layer = _for_these_stages(layer, merged)
        merged = _merge(merged, layer)
    return pickle.dumps(merged)


def _for_these_stages(layer: DictConfig, merged: DictConfig) -> DictConfig:
    """A task's file without the stages that this pipeline does not have: it may have settings for stages of any pipeline."""
    if isinstance(layer.get("stages"), DictConfig):
        layer.stages = {name: stage for name, stage in layer.stages.items() if name in merged.stages}
    return layer


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read ({error})") from error


def _parse_file(file: Path, text: str) -> DictConfig:
    try:
        content = OmegaConf.load(io.StringIO(text))
    except Exception as error:  # yaml and OmegaConf raise several types for invalid YAML
        raise InputError(f"{file} is not valid YAML: {_yaml_problem(error)}") from error
    if not isinstance(content, DictConfig):
        raise InputError(f"{file} holds no mapping; write key: value lines")
    return content


def _parse(text: str, merged: DictConfig) -> DictConfig:
    key, _, value = text.partition("=")
    if not value.strip():
        raise InputError(f"'{text}' has no value; write one, or {key}=null for none")
    stage = re.match(r"stages\.([^.]+)", key)
    if stage and stage[1] not in merged.stages:
        raise InputError(f"stages.{stage[1]} is no stage of this pipeline; {nearest(stage[1], merged.stages)}")
    if key in Config.__dataclass_fields__ and is_dataclass(getattr(Config(), key)):
        raise InputError(
            f"{key}= is a section and takes no value; set one of its keys, such as {key}.{_first_key(key)}=…"
        )
    try:
        return OmegaConf.from_dotlist([text])
    except Exception as error:  # a YAML error inside the value
        raise InputError(f"'{text}' cannot be read: {_yaml_problem(error)}") from error


def _first_key(section: str) -> str:
    return fields(getattr(Config(), section))[0].name


def _merge(base: Any, layer: DictConfig, source: str | None = None) -> Any:
    try:
        # Not `merge`, which copies both: here nothing else uses them.
        return OmegaConf.unsafe_merge(base, layer)
    except ConfigKeyError as error:
        full = error.full_key or str(error.key)
        for old, new in RENAMED.items():
            if full.endswith(f".{old}"):
                raise InputError(f"{full} has another name now; use {full.removesuffix(old)}{new}") from error
        allowed = _siblings(base, full)
        raise InputError(f"unknown key {full}; {nearest(full.rsplit('.', 1)[-1], allowed)}") from error
    except OmegaConfBaseException as error:
        full = error.full_key or (source or "").partition("=")[0]
        kind = _type_of(full)
        if allowed := [str(choice) for choice in choices_of(kind) if choice is not None]:
            given = OmegaConf.select(layer, full)
            value = "null" if given is None else str(given)
            raise InputError(f"{full}={value} is unknown; {nearest(value, allowed, show_all=True)}") from error
        if is_dataclass(kind):
            raise InputError(
                f"{full}= takes no value of its own; set one of its keys, such as {full}.{fields(kind)[0].name}=…"
            ) from error
        wanted = _wanted(kind)
        hint = f"give {wanted}" if wanted else _first_line(error)
        raise InputError(f"'{source or full}' has the wrong type; {hint}") from error


def _type_of(key: str) -> Any:
    """The annotation of a dotted key of the configuration; None if there is no such key."""
    kind: Any = Config
    for part in re.sub(r"\[\d+\]", "", key).split("."):
        if is_dataclass(kind):
            kind = get_type_hints(kind).get(part)
        elif get_origin(kind) is dict:
            kind = get_args(kind)[1]
    return kind


def _wanted(kind: Any) -> str | None:
    """What a setting with this annotation takes, in words."""
    options = set(get_args(kind)) if get_origin(kind) is UnionType else {kind}
    words = next((words for known, words in _TYPES.items() if known in options), None)
    return words and words + (", or null" if NoneType in options else "")


def _siblings(base: Any, full: str) -> list[str]:
    node = base
    for part in re.split(r"\.", full)[:-1]:
        child = OmegaConf.select(node, part)
        if child is None:
            break
        node = child
    return [str(key) for key in node] if isinstance(node, DictConfig) else []


def _yaml_problem(error: Exception) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem is None:
        return _first_line(error)
    mark = error.problem_mark
    return error.problem + (f" at line {mark.line + 1}, column {mark.column + 1}" if mark else "")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
