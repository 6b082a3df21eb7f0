"""The floors of the house: a file imports only from floors below its own, and from its own folder."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "bitkd"
FLOORS = [
    {"errors"},
    {"files", "names"},
    {"quant", "distill", "store", "pretrained"},
    {"engine"},
    {"models", "data"},
    {"callbacks"},
    {"stages"},
    {"config"},
    {"compare", "export", "sources", "processes"},
    {"report"},
    {"pipeline"},
    {"tracking"},
    {"sweep"},
    {"api"},
    {"commands"},
    {"cli"},
    {"__main__", "__init__"},
]
FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(parts: tuple[str, ...]) -> str:
    return parts[0].removesuffix(".py")


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | ({node.module} - {"bitkd"})
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_obey_the_floors(file):
    own = room_of(file.relative_to(PACKAGE).parts)
    for name in imports(file):
        parts = name.split(".")
        if parts[0] != "bitkd" or parts[1] == "__version__":
            continue
        room = parts[1]
        assert room == own or FLOOR[room] < FLOOR[own], f"{own} (floor {FLOOR[own]}) imports {name}"


@pytest.mark.parametrize("room", ["quant", "distill"])
def test_the_ground_floor_needs_only_torch(room):
    for file in (PACKAGE / room).glob("*.py"):
        foreign = {name.split(".")[0] for name in imports(file)} - {"bitkd", "torch"}
        assert foreign <= {
            "abc",
            "collections",
            "contextlib",
            "dataclasses",
            "functools",
            "math",
            "pkgutil",
            "threading",
            "typing",
            "weakref",
        }, f"{file}: {foreign}"


def test_no_files_import_each_other_in_a_circle():
    modules = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in FILES}
    graph = {name: modules.keys() & imports(file) for name, file in modules.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError
