"""What pyproject.toml says of the package is so: its dependencies, its pins, its files."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
DEV = EXTRAS["dev"]
TEXT = {".py", ".cpp", ".md", ".yaml", ".toml", ".txt", ".cff", ".sh", ".sbatch", ".css", ".j2"}
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))


def imported_modules(file: Path) -> set[str]:
    """Top-level names of the modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_the_declared_dependencies_are_the_imported_ones():
    modules = set().union(*(imported_modules(file) for file in (ROOT / "bitkd").rglob("*.py")))
    distributions = importlib.metadata.packages_distributions()
    imported = {
        module: {canonicalize_name(name) for name in distributions.get(module, [])}
        for module in modules - set(sys.stdlib_module_names) - {"bitkd"}
    }
    declared = {canonicalize_name(Requirement(text).name) for text in [*PROJECT["dependencies"], *EXTRAS["onnx"]]}
    of_torch = {"triton"}  # CUDA builds of torch bring it along
    assert {module for module, names in imported.items() if not names & declared} <= of_torch
    assert declared - set().union(*imported.values()) == set()


@pytest.mark.parametrize("text", [*PROJECT["dependencies"], *DEV], ids=lambda text: Requirement(text).name)
def test_every_dependency_has_a_pin_that_it_allows(text):
    requirement = Requirement(text)
    pins = {canonicalize_name(name): version for name, version in PINS.items()}
    assert pins[canonicalize_name(requirement.name)] in requirement.specifier


def test_tests_run_with_every_extra():
    assert set(EXTRAS["onnx"]) <= set(DEV)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the tree, without a network."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in ("bitkd", "conf"):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    build = "import setuptools.build_meta as backend; backend.build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=tree, check=True, capture_output=True)
    [wheel] = tree.glob("bitkd-*.whl")
    return wheel


def test_the_wheel_holds_all_files_of_the_package(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    package = [file for file in (ROOT / "bitkd").rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    files = {f"bitkd/{file.relative_to(ROOT / 'bitkd')}" for file in package}
    files |= {f"bitkd/{file.relative_to(ROOT)}" for file in (ROOT / "conf").rglob("*.yaml")}
    assert files <= names
    assert {"bitkd/py.typed", "bitkd/conf/task/mnli.yaml"} <= names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_wheel_runs_without_the_checkout(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    command = [sys.executable, "-m", "bitkd", "config", "task=demo", "pipeline=singlestage"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert yaml.safe_load(done.stdout)["pipeline"]["name"] == "singlestage"


def test_the_citation_names_the_version_and_the_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    papers = {paper["identifiers"][0]["value"] for paper in citation["references"]}
    assert papers == {f"arXiv:{id}" for id in ("1909.10351", "2004.04037", "2009.12812", "2012.15701", "2206.01859")}


def test_text_files_are_tidy():
    folders = [ROOT / name for name in ("bitkd", "conf", "docs", "experiments", "tests")]
    files = [*ROOT.iterdir(), *(file for folder in folders for file in folder.rglob("*"))]
    untidy = []
    for file in (file for file in files if file.suffix in TEXT and file.is_file() and file.stat().st_size):
        text = file.read_text(encoding="utf-8")
        if not text.endswith("\n") or text.endswith("\n\n") or re.search(r"[ \t\r]$", text, re.MULTILINE):
            untidy.append(str(file.relative_to(ROOT)))
        if file.suffix in {".yaml", ".cff"}:
            list(yaml.safe_load_all(text))
    assert untidy == []  # one newline at the end of a file, no space at the end of a line
