"""Merges the files of `conf/` and dotted overrides into one typed configuration.

`task=`, `pipeline=`, `model=` and `trainer=` choose a file of `conf/`, or give the path of another one. Every file is a
part of the whole configuration. They are merged in this order: config.yaml, model, trainer, pipeline, task, overrides.

`recipe=` stands in place of `pipeline=`: its file is a pipeline's, and may have a section `tasks`, whose entry of the chosen
task is merged after the task's file.
"""

import json
import logging
import os
import pickle
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml.nodes import MappingNode, Node, ScalarNode

from bitkd.config.schema import Config
from bitkd.config.typed import compose, entries_of, from_data, of_override, typed, unknown_key
from bitkd.errors import InputError, nearest
from bitkd.names import shown

log = logging.getLogger(__name__)

GROUPS = ("model", "trainer", "recipe", "pipeline", "task")
"""In the order in which their files are merged."""

TASKS = "tasks"
"""Section of a recipe: task -> settings for it."""


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
    values: Mapping[str, Any] | None = None,
    recorded: Mapping[str, Any] | None = None,
) -> Config:
    """The resolved configuration of `overrides`.

    require: groups that must be chosen.  values: dotted key -> value of further settings, as Python data; a text is taken
    as it is.

    recorded: settings as plain data, nested as in a file. They replace those of files, and dotted overrides replace them.
    Raises InputError if a setting is wrong; the message suggests the nearest known key or name.
    """
    chosen, dotted = _split(overrides)
    if "recipe" in chosen and "pipeline" in chosen:
        raise InputError(
            f"recipe={chosen['recipe']} and pipeline={chosen['pipeline']} are both given; a recipe has its own stages, so leave "
            "pipeline= out"
        )
    for group in require:
        if group not in chosen and not (group == "pipeline" and "recipe" in chosen):
            raise InputError(
                f"{group}= is missing; choose one of {', '.join(choices(group))}, or a path to a YAML file"
                + (f"; or recipe= with one of {', '.join(choices('recipe'))}" if group == "pipeline" else "")
            )
    files = {"config": conf_dir() / "config.yaml"}
    files |= {group: _file_of(group, chosen[group]) for group in GROUPS if group in chosen}
    merged = pickle.loads(_merge_files(tuple((group, file, _read(file)) for group, file in files.items())))
    if recorded:
        _merge(merged, _as_layer(recorded))
    for text in dotted:
        key, _, value = text.partition("=")
        if not value.strip():
            raise InputError(f"'{shown(text)}' has no value; write one, or {key}=null for none")
        kind = _kind_of(key, merged)
        _merge(merged, _nested(key, typed(of_override(value, kind, key), kind, key, text)))
    for key, value in (values or {}).items():
        kind = _kind_of(key, merged)
        _merge(merged, _nested(key, typed(from_data(value), kind, key, f"{key}={value}")))
    where = ""
    try:
        for name, stage in merged.stages.items():
            where = f"stages.{name}: "
            OmegaConf.to_object(stage)
        where = ""
        config: Config = OmegaConf.to_object(merged)  # type: ignore[assignment]
    except InputError as error:
        raise InputError(f"{where}{error}") from error
    except OmegaConfBaseException as error:
        raise InputError(f"configuration is incomplete: {shown(_first_line(error), 200)}") from error
    if config.embedding_bits is not None:
        _set_embedding_bits(config, config.embedding_bits)
    if not config.share_across_seeds:
        for stage in config.stages.values():
            stage.seed = None
    return config


def _as_layer(recorded: Mapping[str, Any]) -> dict[str, Any]:
    if "${" in json.dumps(recorded):  # OmegaConf would resolve it, on this machine
        raise InputError("the recorded settings have a '${' in them, which is no text here; give the settings yourself")
    layer: dict[str, Any] = typed(from_data(dict(recorded)), Config, "")
    return layer


def _set_embedding_bits(config: Config, bits: int) -> None:
    try:
        for stage in config.stages.values():
            if stage.quant.weight_bits < 32 and stage.quant.embedding_bits is None:
                stage.quant = replace(stage.quant, embedding_bits=bits)
    except InputError as error:
        given = f"embedding_bits={bits}"
        raise InputError(str(error) if given in str(error) else f"{given}: {error}") from error


def to_yaml(config: Config) -> str:
    """The configuration as YAML, as `bitkd config` prints it."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _split(overrides: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    given: dict[str, str] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InputError(
                f"'{shown(text)}' is no setting; write key=value (`bitkd config task=… pipeline=…` lists the keys)"
            )
        before = given.pop(key, value)  # popped, so that it takes the place of the last one
        if before != value and os.environ.get("LOCAL_RANK", "0") == "0":
            log.warning("%s= is given twice; %s counts, and not %s", key, shown(value), shown(before))
        given[key] = value
    chosen = {key: value for key, value in given.items() if key in GROUPS}
    return chosen, [f"{key}={value}" for key, value in given.items() if key not in GROUPS]


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
def _merge_files(files: tuple[tuple[str, Path, str], ...]) -> bytes:
    """The merged content of (group, file, text), pickled: to unpickle it takes 3 ms, to merge again 100 ms."""
    merged: Any = OmegaConf.structured(Config)
    of_tasks: dict[str, dict[str, Any]] = {}
    for group, file, text in files:
        node = _mapping_of(file, text)
        if group == "recipe":
            node, of_tasks = _without_tasks(node, file)
        layer = typed(node, Config, "")
        if group == "task" and isinstance(layer.get("stages"), dict):
            # A task's file may have settings for stages of any pipeline.
            layer["stages"] = {name: stage for name, stage in layer["stages"].items() if name in merged.stages}
        _merge(merged, layer)
    _merge(merged, of_tasks.get(merged.task.name, {}))
    for task in of_tasks:
        if task != merged.task.name and task not in choices("task"):
            log.warning("%s.%s of the recipe is no task of conf/; %s", TASKS, task, nearest(task, choices("task")))
    return pickle.dumps(merged)


def _mapping_of(file: Path, text: str) -> MappingNode:
    node: Node | None = compose(text, str(file))
    if not isinstance(node, MappingNode):
        raise InputError(f"{file} holds no mapping; write key: value lines")
    return node


def _without_tasks(recipe: MappingNode, file: Path) -> tuple[MappingNode, dict[str, dict[str, Any]]]:
    """A recipe's settings for all tasks, and task -> settings for it. All are checked, whatever the task."""
    entries = entries_of(recipe, "")
    stages, tasks = entries.get("stages"), entries.pop(TASKS, None)
    known = entries_of(stages, "stages") if isinstance(stages, MappingNode) else {}
    found: dict[str, dict[str, Any]] = {}
    if tasks is not None and not isinstance(tasks, MappingNode):
        raise InputError(f"{file}: {TASKS} is no mapping; write a task's name and the settings for it")
    for task, node in entries_of(tasks, TASKS).items() if tasks is not None else ():
        found[task] = typed(node, Config, f"{TASKS}.{task}")
        if unknown := [name for name in found[task].get("stages", {}) if name not in known]:
            raise InputError(
                f"{file}: {TASKS}.{task}.stages.{unknown[0]} is no stage of this recipe; {nearest(unknown[0], known)}"
            )
    pairs = [(ScalarNode("tag:yaml.org,2002:str", name), node) for name, node in entries.items()]
    return MappingNode(recipe.tag, pairs), found


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read ({error})") from error


def _kind_of(key: str, merged: DictConfig) -> Any:
    """The annotation of a key that is set. Raises InputError if there is no such key, or it is a section of all stages."""
    stage = re.match(r"stages\.([^.]+)", key)
    if stage and stage[1] not in merged.stages:
        raise InputError(
            f"stages.{stage[1]} is no stage of this pipeline; {nearest(stage[1], map(str, merged.stages))}"
        )
    kind: Any = Config
    parts = key.split(".")
    for position, part in enumerate(parts):
        if is_dataclass(kind):
            names = [field.name for field in fields(kind)]
            if part not in names:
                raise unknown_key(".".join(parts[: position + 1]), names)
            kind = get_type_hints(kind)[part]
        elif get_origin(kind) is dict and part:
            kind = get_args(kind)[1]
        else:
            raise InputError(f"unknown key {shown(key)}; {shown(key.removesuffix(f'.{part}'))} has no keys of its own")
    if is_dataclass(kind) and "." not in key:
        raise InputError(
            f"{key}= is a section and takes no value; set one of its keys, such as {key}.{fields(kind)[0].name}=…"
        )
    return kind


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _merge(base: DictConfig, layer: dict[str, Any]) -> None:
    """Put the settings of `layer`, which have the types of `Config`, into `base`."""
    # Not `merge`, which copies both: here nothing else uses them.
    OmegaConf.unsafe_merge(base, layer)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
