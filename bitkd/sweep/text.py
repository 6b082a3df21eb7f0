"""The content of a sweep file, in which the values of text settings are the text that stands there.

wandb's own agent reads them as YAML does: a sweep that it runs needs quotes around a value such as 010.
"""

import re
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from bitkd.config.load import GROUPS
from bitkd.config.schema import Config
from bitkd.config.typed import entries_of, holds_text, type_of
from bitkd.errors import InputError
from bitkd.names import shown

_TEXTS = ("name", "description", "program", "project", "entity", "method")
"""Keys of a sweep file whose values are text."""

_OTHER_NUMBERS = re.compile(r"[-+]?(0[\dxXbB_]\w*|.*:.*)")
"""What YAML reads as an octal, hexadecimal or sexagesimal number."""


def sweep_data(node: Node | None) -> Any:
    """Plain data of the nodes of a sweep file.

    Raises InputError if a value for a number setting is one that YAML reads otherwise than people do, such as 010 or 12:30.
    """
    if not isinstance(node, MappingNode):
        return None
    found = {}
    for key, value in entries_of(node, "").items():
        if key == "parameters" and isinstance(value, MappingNode):
            found[key] = {name: _parameter(entry, name) for name, entry in entries_of(value, key).items()}
        else:
            found[key] = _data(value, key in _TEXTS or key == "command", key)
    return found


def _parameter(node: Node, name: str) -> Any:
    if not isinstance(node, MappingNode):
        return _data(node, False, name)
    is_text = name in GROUPS or holds_text(type_of(name, Config))
    return {
        key: _data(value, is_text and key in ("value", "values"), f"parameters.{name}.{key}")
        for key, value in entries_of(node, name).items()
    }


def _data(node: Node, is_text: bool, where: str) -> Any:
    """is_text: take every scalar as the text that stands there; null in quotes stays text, without them it is None."""
    if isinstance(node, SequenceNode):
        return [_data(entry, is_text, where) for entry in node.value]
    if isinstance(node, MappingNode):
        return {key: _data(value, is_text, f"{where}.{key}") for key, value in entries_of(node, where).items()}
    assert isinstance(node, ScalarNode)
    if is_text and node.tag != "tag:yaml.org,2002:null":
        return node.value
    if node.tag.endswith((":int", ":float")) and _OTHER_NUMBERS.fullmatch(node.value):
        raise InputError(
            f"{where}: YAML reads {shown(node.value)} as {_constructed(node)}; write a decimal number, or quotes"
        )
    return _constructed(node)


def _constructed(node: ScalarNode) -> Any:
    try:
        return yaml.SafeLoader("").construct_object(node)
    except (ValueError, yaml.YAMLError):  # such as a date that does not exist, or a single =
        return node.value
