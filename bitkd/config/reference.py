"""Makes docs/configuration.md from the settings' docstrings: `python -m bitkd.config.reference > docs/configuration.md`."""

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from omegaconf import MISSING as REQUIRED

from bitkd.config.schema import Config

INTRODUCTION = """\
# Configuration

Every setting, as it is typed on the command line: `bitkd run pipeline=singlestage task=demo train.epochs=1`. This page is
generated from the docstrings in the code by `make docs`; do not edit it.

`task=`, `pipeline=`, `recipe=`, `model=` and `trainer=` take the name of a file of [`conf/`](../conf), or a path to another YAML
file. Later files override earlier ones: config.yaml, model, trainer, pipeline or recipe, task, the recipe's values for the task.
The settings of the command line override all files. The defaults below are those of the code, before any file. `bitkd config`
with the same settings prints the resulting values.

`NODE` is a stage of the pipeline, `NAME` a name of your choice, and `null` means none."""

_WORDS = {bool: "true or false", int: "whole number", float: "number", str: "text"}


def docstrings(spec: type) -> dict[str, str]:
    """Field -> the docstring under it in the source, base classes included."""
    found: dict[str, str] = {}
    for base in reversed(spec.__mro__):
        if not is_dataclass(base):
            continue
        [node] = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(node, ast.ClassDef)
        for line, below in zip(node.body, node.body[1:], strict=False):
            if not (isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)):
                continue
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                found[line.target.id] = " ".join(str(below.value.value).split())
    return found


def describe_type(kind: Any) -> str:
    """What a setting of this type takes, in words."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (UnionType, Union):
        words = [describe_type(one) for one in arguments if one is not NoneType]
        return " or ".join([*words, "null"] if NoneType in arguments else words)
    if origin is Literal:
        return ", ".join(f"`{_value(choice)}`" for choice in arguments)
    if origin is list:
        return f"list of {describe_type(arguments[0])}s"
    if origin is dict:
        return describe_type(arguments[1])
    return _WORDS[kind]


def sections(spec: type = Config, prefix: str = "") -> Iterator[tuple[str, type, list[tuple[str, str, str, str]]]]:
    """Each section's prefix, its class, and its settings: key, type, default, meaning.

    Raises ValueError if a setting has no docstring.
    """
    kinds, meanings, rows, nested = get_type_hints(spec), docstrings(spec), [], []
    for field in fields(spec):
        kind, key = kinds[field.name], f"{prefix}{field.name}"
        inner = get_args(kind)[1] if get_origin(kind) is dict else kind
        if is_dataclass(inner):
            nested.append((inner, key + (".NODE." if inner is not kind else ".")))
            continue
        if field.name not in meanings:
            raise ValueError(f"{spec.__name__}.{field.name} has no docstring; write what it means under it")
        key += ".NAME" if get_origin(kind) is dict else ""
        rows.append((key, describe_type(kind), _default(field, kind), meanings[field.name]))
    yield prefix, spec, rows
    for inner, key in nested:
        yield from sections(inner, key)  # type: ignore[arg-type]


def render() -> str:
    """The page, as Markdown."""
    parts = [INTRODUCTION]
    for prefix, spec, rows in sections():
        title = f"`{prefix.rstrip('.')}`" if prefix else "The run"
        about = "" if spec is Config else f"\n\n{' '.join(inspect.cleandoc(spec.__doc__ or '').split())}"
        parts.append(f"## {title}{about}")
        if rows:
            table = ["| setting | takes | default | meaning |", "| --- | --- | --- | --- |"]
            table += ["| " + " | ".join(_cell(cell) for cell in (f"`{row[0]}`", *row[1:])) + " |" for row in rows]
            parts.append("\n".join(table))
    return "\n\n".join(parts) + "\n"


def _default(field: "Field[Any]", kind: Any) -> str:
    value = field.default_factory() if field.default_factory is not MISSING else field.default
    if value is MISSING or value == REQUIRED:
        return "required"
    return "" if get_origin(kind) is dict and not value else f"`{_value(value)}`"


def _value(value: Any) -> str:
    """A value as it is typed on the command line."""
    return value if isinstance(value, str) and value else json.dumps(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(render(), end="")
