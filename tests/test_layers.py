"""The plan of the rooms, checked against what every module imports, wherever in the module the import stands."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "monitor"
LEAVES = {"_records", "_settings", "_errors", "_checks"}
TOLD = {"_command", "_folder", "_known", "_version"}  # leaf-like: they import leaves at most
EDGES = {"probe", "control", "system", "export", "server"}
CORE = {"recorder", "detect"}

# The front of the house: it assembles the rooms, and the parts of the assembly know each other.
FRONT = {
    "_run",
    "_engine",
    "_training",
    "_optimizers",
    "_reports",
    "_outlets",
    "_disk",
    "_journal",
    "_attach",
    "_detection",
    "_access",
    "_disabled",
    "_log",
    "_logged",
    "_identity",
    "_open_runs",
}

# room -> rooms that it may import. A room may always import itself.
MAY_IMPORT: dict[str, set[str]] = {
    "_checks": set(),
    "_records": set(),
    "_errors": set(),
    "_version": set(),
    "_command": set(),
    "_settings": {"_checks", "_errors", "_records"},
    "_known": {"_records"},
    "_folder": {"_known"},
    "detect": LEAVES,
    "recorder": LEAVES | {"detect"},
    **dict.fromkeys(EDGES, LEAVES | {"recorder", "detect"}),
    **dict.fromkeys(FRONT, LEAVES | TOLD | EDGES | CORE | FRONT),
    # dashboards as code: in the catalogue's names, and so beside the edges, not among them
    "grafana": LEAVES | {"export"},
    "alerts": LEAVES | {"export"},
    "__init__": LEAVES | TOLD | FRONT | {"control", "detect"},
    # the command line: HTTP and run folders; only the demo reaches for a run
    "_client": {"_known", "_records"},
    "_report": set(),
    "_reach": {"_client", "_known"},
    "_screen": {"_report"},
    "_demo": {"_command", "_run", "_access", "server"},
    "_curves": {"_records"},
    "_replay": {"_curves", "_records", "detect"},
    "_replay_plot": {"_curves", "_records"},
    "_stack": {"_known", "alerts", "grafana"},
    "cli_dashboards": {"_client", "_known", "_records", "_stack", "grafana"},
    "cli_top": {"_client", "_known", "_reach", "_records", "_report", "_screen"},
    "cli_replay": {"_curves", "_replay", "_replay_plot", "detect"},
    "cli": {"_client", "_known", "_reach", "_report", "_version"},
    "__main__": {"cli"},
}
# library -> rooms that may import it. A library that is not named here may be imported by no room.
OUTSIDE: dict[str, set[str]] = {
    "torch": {"probe", "control", "_engine", "_training", "_reports", "_attach", "_optimizers", "_identity", "_logged"},
    "prometheus_client": {"export"},
    "psutil": {"system"},
    "pynvml": {"system"},
    "flask": {"server"},
    "werkzeug": {"server"},
    "cheroot": {"server"},
    "plotly": {"server"},
    "platformdirs": {"_known"},
    "click": {"cli", "cli_replay", "cli_dashboards", "cli_top", "_reach", "_demo"},
    "rich": {"_screen", "cli_top"},
    "grafana_client": {"grafana"},
}


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Every dotted name that a module imports at run time."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            here = path.relative_to(ROOT).with_suffix("").parts
            module = ".".join([*(here[: -node.level] if node.level else ()), *([node.module] if node.module else ())])
            # `from monitor import x` names the room x where there is one, else the front door.
            yield from (f"monitor.{alias.name}" for alias in node.names) if module == "monitor" else (module,)


def rooms_and_libraries(path: Path) -> tuple[set[str], set[str]]:
    rooms, libraries = set(), set()
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "monitor":
            libraries.add(parts[0])
        elif len(parts) > 1 and ((PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").exists()):
            rooms.add(parts[1])
        else:
            rooms.add("__init__")
    return rooms - {room_of(path)}, libraries - set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_what_the_plan_allows(path: Path) -> None:
    """Rooms import downwards only, edges never each other, and each outside library has its rooms."""
    room = room_of(path)
    assert room in MAY_IMPORT, f"{room} is not in the plan: add it to tests/test_layers.py with what it may import"
    rooms, libraries = rooms_and_libraries(path)
    assert rooms <= MAY_IMPORT[room], f"{room} may not import {sorted(rooms - MAY_IMPORT[room])}"
    foreign = {library for library in libraries if room not in OUTSIDE.get(library, set())}
    assert not foreign, f"{room} may not import {sorted(foreign)}"


def test_edges_never_import_each_other() -> None:
    """The plan itself keeps the edges apart, and the core free of every outside library."""
    for edge in EDGES:
        assert not MAY_IMPORT[edge] & EDGES
    for users in OUTSIDE.values():
        assert not users & (CORE | LEAVES)


def test_the_plan_names_no_room_that_is_gone() -> None:
    """A room that no longer exists has no place in the plan."""
    existing = {room_of(path) for path in modules()}
    assert set(MAY_IMPORT) <= existing


def test_the_wheel_holds_every_room() -> None:
    """The packages listed for the wheel are those of the tree, and the examples that `monitor demo` runs."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    in_tree = {".".join(path.relative_to(ROOT).parent.parts) for path in modules()}
    assert set(listed) == in_tree | {"monitor._examples"}
