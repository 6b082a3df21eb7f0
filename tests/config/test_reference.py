"""docs/configuration.md is generated from the settings' docstrings."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from bitkd.config import reference

ROOT = Path(__file__).parent.parent.parent


def test_the_page_of_settings_is_generated():
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == reference.render(), "the settings' docstrings have changed; run `make docs`"


def test_every_setting_has_a_meaning():
    rows = [row for _, _, rows in reference.sections() for row in rows]
    assert len(rows) > 100
    assert all(kind and meaning for _, kind, _, meaning in rows)
    assert len({key for key, *_ in rows}) == len(rows)


def test_the_page_of_settings_lists_what_a_configuration_holds():
    """Every key of a resolved configuration is on the page, names of stages and sets aside."""

    def keys(node, prefix=""):
        for key, value in node.items():
            if prefix in (
                "stages.",
                "budget.shares.",
                "task.files.dev.",
                "task.files.test.",
                "task.hub.dev.",
                "task.hub.test.",
            ):
                key = "NODE" if prefix == "stages." else "NAME"
            if isinstance(value, dict) and value:
                yield from keys(value, f"{prefix}{key}.")
            elif not isinstance(value, dict):
                yield f"{prefix}{key}"

    printed = subprocess.run(
        [sys.executable, "-m", "bitkd", "config", "task=mnli", "pipeline=multistage"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    listed = {key for _, _, rows in reference.sections() for key, *_ in rows}
    assert set(keys(yaml.safe_load(printed))) <= listed


def test_a_setting_without_a_docstring_is_refused():
    @dataclass
    class Spec:
        speed: int = 1

    with pytest.raises(ValueError, match=r"Spec\.speed has no docstring"):
        list(reference.sections(Spec))
