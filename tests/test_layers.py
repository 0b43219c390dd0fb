"""The plan of the rooms, checked against what every module imports, wherever in the module the import stands."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "monitor"
LEAVES = {"_records", "_settings", "_errors"}
TOLD = {"store", "_version"}  # leaf-like: they import leaves at most
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
    "_records": set(),
    "_errors": set(),
    "_version": set(),
    "_settings": {"_errors", "_records"},
    "store": set(),
    "detect": LEAVES,
    "recorder": LEAVES | {"detect"},
    **dict.fromkeys(EDGES, LEAVES | {"recorder", "detect"}),
    **dict.fromkeys(FRONT, LEAVES | TOLD | EDGES | CORE | FRONT),
    # dashboards as code: in the catalogue's names, and so beside the edges, not among them
    "grafana": LEAVES | {"export"},
    "alerts": LEAVES | {"export"},
    "replay": {"_records", "detect"},
    "__init__": LEAVES | TOLD | FRONT | {"control", "detect"},
    # the command line: HTTP and run folders; only the demo reaches for a run
    "cli": {"cli._main"},
    "cli._client": {"store"},
    "cli._format": set(),
    "cli._reach": {"cli._client", "store"},
    "cli._screen": {"cli._format"},
    "cli._demo": {"_run", "_access", "server", "store"},
    "cli._stack": {"alerts", "grafana", "store"},
    "cli._dashboards": {"_records", "cli._client", "cli._stack", "grafana", "store"},
    "cli._top": {"cli._client", "cli._format", "cli._reach", "cli._screen", "store"},
    "cli._replay": {"detect", "replay"},
    "cli._main": {"_version", "cli._client", "cli._format", "cli._reach", "store"},
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
    "platformdirs": {"store"},
    "click": {f"cli.{name}" for name in ("_main", "_reach", "_dashboards", "_demo", "_replay", "_top")},
    "rich": {"cli._screen", "cli._top"},
    "grafana_client": {"grafana"},
}


def room_of(path: Path) -> str:
    """Return the line of the plan that a module stands in: its own, else that of its package."""
    names = name_of(path).split(".")[1:] or ["__init__"]
    return next((one for i in range(len(names), 0, -1) if (one := ".".join(names[:i])) in MAY_IMPORT), names[0])


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in modules()}


def imports(path: Path) -> Iterator[str]:
    """Every module that a module imports: at the top, inside a function, or for the type checker alone."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            source = ".".join([*package, *([node.module] if node.module else ())])
            # `from package import x` names the module x where there is one, else the package.
            names = (f"{source}.{alias.name}" for alias in node.names)
            yield from (name if name in MODULES else source for name in names)


def rooms_and_libraries(path: Path) -> tuple[set[str], set[str]]:
    rooms, libraries = set(), set()
    for name in imports(path):
        if name in MODULES:
            rooms.add(room_of(MODULES[name]))
        else:
            libraries.add(name.split(".")[0])
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


def test_no_module_imports_itself_by_way_of_others() -> None:
    """The graph of the modules has no circle, the imports for the type checker alone included."""
    graph = {name: {one for one in imports(path) if one in MODULES} for name, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


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
