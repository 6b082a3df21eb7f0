"""YAML whose scalars are typed by the settings that they are for, and not by how they look.

YAML reads 010 as 8, 1e3 or 12:30 as a number, and yes as true. Here the text stays what was written, and the annotation of the
setting decides: for a text it is that text, for a number it must be one.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from bitkd.errors import InputError, choices_of, nearest
from bitkd.names import CONTROL, shown
from bitkd.stages.spec import TERMS

RENAMED = {
    "quant.gradient_clip": "quant.ste_clip",
    "loss.include_padding": "loss.padding (skip for false, zero for true)",
}
"""Old end of a key -> its new name, for settings that earlier versions named otherwise, and what its values are now."""

LONGEST_FILE = 2**20
"""Characters of a file of settings."""

MOST_VALUES = LONGEST_FILE // 4
"""Values of a file of settings, where an alias counts as all that it stands for."""

LARGEST_WHOLE = 2**53
"""Whole numbers beyond it are no steps, rows or bytes of anything, and a float cannot count them."""

_TYPES: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number, such as 100",
    float: "a number, such as 2e-5",
    list[int]: "a list of whole numbers, such as [1,3,5]",
    list[str]: "a list, such as [one,two]",
}

_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}

_KEY = re.compile(r"\$\{[\w.\[\]-]+\}")
"""An interpolation of a key of the configuration, the only kind that is allowed."""

_CORE = "tag:yaml.org,2002:"
_NULL = f"{_CORE}null"
_NONE = f"{_CORE}none"
"""Tag of Python's None, which is never the text null."""

_MERGE = f"{_CORE}merge"
_TAGS = {_CORE + name for name in ("str", "int", "float", "bool", "null", "map", "seq", "timestamp", "merge", "value")}


def compose(text: str, where: str) -> Node | None:
    """The nodes of a YAML text, not yet typed; None if it is empty.  where: its name in messages.

    Raises InputError if it is no YAML, is too long or too deep, repeats a key, or has tags.
    """
    if len(text) > LONGEST_FILE:
        raise InputError(f"{where} has {len(text):,} characters; settings have at most {LONGEST_FILE:,}")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _check_nodes(node, where, set())
        _check_aliases(node, where)
    except yaml.YAMLError as error:
        raise InputError(f"{where} is not valid YAML: {_yaml_problem(error)}") from error
    except RecursionError as error:
        raise InputError(f"{where} is not valid YAML: it is nested too deeply") from error
    return node


def from_data(value: Any) -> Node:
    """The nodes of plain Python data; other objects as their text."""
    if isinstance(value, dict):
        return MappingNode(f"{_CORE}map", [(from_data(str(key)), from_data(entry)) for key, entry in value.items()])
    if isinstance(value, list | tuple | set | frozenset):
        return SequenceNode(f"{_CORE}seq", [from_data(entry) for entry in value])
    if value is None:
        return ScalarNode(_NONE, "null")
    return ScalarNode(f"{_CORE}str", str(value).lower() if isinstance(value, bool) else str(value))


def of_override(text: str, kind: Any, key: str) -> Node:
    """The nodes of a value on the command line: for a text what was typed, unless it is in quotes as a whole."""
    if _plain(kind) is str and text[:1] not in ("'", '"'):
        is_null = kind is not str and text.strip() in ("null", "Null", "NULL", "~")
        return ScalarNode(_NULL if is_null else f"{_CORE}str", text)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _check_nodes(node, f"'{shown(key)}={shown(text)}'", set())
        _check_aliases(node, f"'{shown(key)}={shown(text)}'")
    except (yaml.YAMLError, RecursionError) as error:
        if _plain(kind) is str:  # such as 'a' and 'b'
            return ScalarNode(f"{_CORE}str", text)
        problem = _yaml_problem(error) if isinstance(error, yaml.YAMLError) else "it is nested too deeply"
        raise InputError(f"'{key}={shown(text)}' cannot be read: {problem}") from error
    return ScalarNode(_NULL, "") if node is None else node


def typed(node: Node | None, kind: Any, key: str, source: str | None = None) -> Any:
    """The value of a node, as the annotation `kind` wants it, as plain data; sections are dictionaries of what is given.

    An interpolation (`${train.lr}`) stays text, for OmegaConf.
    key: dotted, for messages.  source: what was typed, for messages.
    Raises InputError if it has another type, or a key is unknown.
    """
    if is_dataclass(kind):
        return _section(node, kind, key, source)
    wanted, kind = kind, _plain(kind)
    if wanted is not kind and _is_null(node):
        return None
    if get_origin(kind) is dict and isinstance(node, MappingNode):
        return {
            name: typed(value, get_args(kind)[1], f"{key}.{name}" if key else name, None)
            for name, value in entries_of(node, key).items()
        }
    if get_origin(kind) is list and isinstance(node, SequenceNode):
        return [typed(entry, get_args(kind)[0], f"{key}[{i}]", source) for i, entry in enumerate(node.value)]
    if isinstance(node, ScalarNode) and node.tag != _NONE:
        text = _checked_text(node.value, key)
        if "${" in text:
            return text
        if get_origin(kind) is Literal:
            return _choice(text, kind, key)
        if kind is str:
            return text
        if (value := _number(text, kind, source or key)) is not None:
            return value
    raise _wrong_type(wanted, key, source, node)


def entries_of(node: MappingNode, key: str) -> dict[str, Node]:
    """Key -> node of a mapping, merged ones (`<<`) included. Raises InputError if a key is no name."""
    found: dict[str, Node] = {}
    for mapping in _with_merged(node, key, set()):
        own: dict[str, Node] = {}
        for name, value in mapping.value:
            if not isinstance(name, ScalarNode):
                raise InputError(f"{key or 'the file'} has a list or a mapping as a key; write a name")
            if name.tag == _MERGE:
                continue
            text = _checked_text(name.value, key)
            if "${" in text:
                raise InputError(f"{key or 'the file'} has the key {shown(text)}; write a name")
            own[text] = value
        found = own | found
    return found


def _with_merged(node: MappingNode, key: str, seen: set[int]) -> Iterator[MappingNode]:
    """A mapping, then those that it merges, the most important first, each once."""
    if id(node) in seen:
        return
    seen.add(id(node))
    yield node
    for name, value in node.value:
        if isinstance(name, ScalarNode) and name.tag == _MERGE:
            for source in value.value if isinstance(value, SequenceNode) else [value]:
                if not isinstance(source, MappingNode):
                    raise InputError(f"{key or 'the file'} merges (<<) what is no mapping; merge an alias of one")
                yield from _with_merged(source, key, seen)


def type_of(key: str, config: type) -> Any:
    """The annotation of a dotted key of the configuration; None if there is no such key."""
    kind: Any = config
    for part in key.split("."):
        if is_dataclass(kind):
            kind = get_type_hints(kind).get(part)
        elif get_origin(kind) is dict:
            kind = get_args(kind)[1]
        else:
            return None
    return kind


def holds_text(kind: Any) -> bool:
    """Whether a setting with this annotation takes text: one, a list, or names with one each."""
    plain = _plain(kind)
    return plain is str or (get_origin(plain) in (list, dict) and get_args(plain)[-1] is str)


def unknown_key(full: str, allowed: Sequence[str]) -> InputError:
    """The error for a key that is not there.  allowed: those of its section."""
    for old, new in RENAMED.items():
        if full.endswith(f".{old}"):
            return InputError(f"{full} has another name now; use {full.removesuffix(old)}{new}")
    section, _, name = full.rpartition(".")
    if section.endswith("loss") and name in TERMS:
        return InputError(f"unknown key {shown(full)}; use {section}.extra.{name}")
    return InputError(f"unknown key {shown(full)}; {nearest(full.rsplit('.', 1)[-1], allowed)}")


def _section(node: Node | None, kind: Any, key: str, source: str | None) -> dict[str, Any]:
    if not isinstance(node, MappingNode):
        raise _wrong_type(kind, key, source, node)
    kinds = get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    found = {}
    for name, value in entries_of(node, key).items():
        full = f"{key}.{name}" if key else name
        if name not in names:
            raise unknown_key(full, names)
        found[name] = typed(value, kinds[name], full)
    return found


def _choice(text: str, kind: Any, key: str) -> Any:
    choices = {str(choice): choice for choice in get_args(kind)}
    if text not in choices:
        raise InputError(f"{key}={shown(text)} is unknown; {nearest(text, choices, show_all=True)}")
    return choices[text]


def _number(text: str, kind: Any, where: str) -> bool | int | float | None:
    """The number or truth value that a text is; None if it is none. Raises InputError if it is too large."""
    if kind is bool:
        return _BOOLEANS.get(text.lower())
    if kind is int and re.fullmatch(r"[-+]?\d+(_\d+)*", text):
        if len(text) > 20 or abs(int(text)) > LARGEST_WHOLE:
            raise InputError(f"'{shown(where)}' is too large ({shown(text)}); whole numbers go to {LARGEST_WHOLE:,}")
        return int(text)
    if kind is float:
        if text.lower().lstrip("+-") in (".inf", ".nan"):
            text = text.replace(".", "", 1)
        try:
            value = float(text)
        except ValueError:
            return None
        if math.isinf(value) and "inf" not in text.lower():
            raise InputError(f"'{shown(where)}' is too large ({shown(text)}); numbers go to 1.7e308")
        return value
    return None


def _checked_text(text: str, key: str) -> str:
    """A text of the settings, with characters that JSON wrote as two halves in one.

    Raises InputError for control characters, for ???, and for interpolations of anything but keys of the configuration.
    """
    if any("\ud800" <= character <= "\udfff" for character in text):
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if wrong := CONTROL.search(text):
        raise InputError(
            f"{shown(key)} has the control character {wrong[0]!r} in {shown(text)}; leave it out (a tab and a line break "
            "are allowed)"
        )
    if text == "???":
        raise InputError(f"{shown(key)} is ???, which stands for a missing value; write another text")
    if "${" in _KEY.sub("", text) or r"\${" in text:
        raise InputError(
            f"{shown(key)} has {shown(text)}: ${{…}} may only name another key of the configuration, such as ${{train.lr}}; "
            "nothing is read from the environment, so write the value itself"
        )
    return text


def _wrong_type(kind: Any, key: str, source: str | None, node: Node | None) -> InputError:
    given = "null" if _is_null(node) else shown(node.value) if isinstance(node, ScalarNode) else "…"
    if allowed := [str(choice) for choice in choices_of(kind) if choice is not None]:
        return InputError(f"{key}={given} is unknown; {nearest(given, allowed, show_all=True)}")
    if is_dataclass(kind):
        example = f"{key}.{fields(kind)[0].name}" if key else fields(kind)[0].name
        return InputError(f"{key}= takes no value of its own; set one of its keys, such as {example}=…")
    return InputError(f"'{shown(source or key)}' has the wrong type; give {_wanted(kind)}")


def _wanted(kind: Any) -> str:
    """What a setting with this annotation takes, in words."""
    plain = _plain(kind)
    if get_origin(plain) is dict:
        return "names with a value each, such as {one: two}"
    words = _TYPES.get(plain, "a text")
    return words + (", or null" if plain is not kind else "")


def _plain(kind: Any) -> Any:
    """An annotation without its `| None`."""
    if get_origin(kind) in (UnionType, Union):
        [kind] = [one for one in get_args(kind) if one is not NoneType]
    return kind


def _is_null(node: Node | None) -> bool:
    return node is None or (isinstance(node, ScalarNode) and node.tag in (_NULL, _NONE))


def _check_nodes(node: Node | None, where: str, seen: set[int]) -> None:
    """Raise InputError if a node or one below it has a tag, or is a mapping with a repeated key."""
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    if node.tag not in _TAGS:
        raise InputError(f"{where} has the tag {shown(node.tag)}; settings have none, so write the value itself")
    if isinstance(node, SequenceNode):
        for child in node.value:
            _check_nodes(child, where, seen)
    if isinstance(node, MappingNode):
        lines: dict[str, int] = {}
        for name, value in node.value:
            if isinstance(name, ScalarNode) and name.tag != _MERGE:
                line = name.start_mark.line + 1
                if name.value in lines:
                    raise InputError(
                        f"{where}: {shown(name.value)} is given twice, in line {lines[name.value]} and in line {line}; "
                        "leave one out"
                    )
                lines[name.value] = line
            _check_nodes(name, where, seen)
            _check_nodes(value, where, seen)


def _check_aliases(root: Node | None, where: str) -> None:
    """Raise InputError if aliases (`*a`) repeat values too often, or a value is inside itself."""
    sizes: dict[int, int] = {}

    def size(node: Node) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = MOST_VALUES + 1  # until it is known: it would be inside itself
            children = entries_of(node, where).values() if isinstance(node, MappingNode) else node.value
            sizes[id(node)] = 1 if isinstance(node, ScalarNode) else 1 + sum(map(size, children))
        return sizes[id(node)]

    if root is not None and size(root) > MOST_VALUES:
        raise InputError(
            f"{where} has more than {MOST_VALUES:,} values, with what its aliases (*) repeat; leave some out"
        )


def _yaml_problem(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem is None:
        return str(error).strip().splitlines()[0]
    mark = error.problem_mark
    return error.problem + (f" at line {mark.line + 1}, column {mark.column + 1}" if mark else "")
