"""The plan of the packages, checked against what every module imports, wherever in the module the import stands."""

from __future__ import annotations

import ast
import subprocess
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
NUM_BESIDE = 6
"""The most modules that stand beside the packages."""
LEAVES = {"_records", "_settings", "_errors", "_checks"}
EDGES = {"probe", "control", "system", "export", "server"}
CORE = {"common", "recorder", "detect", "link"}

# Package or module -> those that it may import, be it for the type checker alone. The modules of a package that stands
# here as a whole may import each other, but not in a circle; of one whose modules stand here one by one, only those
# that the line names.
MAY_IMPORT: dict[str, set[str]] = {
    "_checks": set(),
    "_records": set(),
    "_errors": set(),
    "_version": set(),
    "_settings": {"_checks", "_errors", "_records"},
    "common": set(),
    "store": {"_checks", "_errors", "_records", "common"},
    "detect": LEAVES,
    "link": LEAVES | {"common"},
    "recorder": LEAVES | {"common", "detect", "link"},
    "ranks": {"_records"},
    **dict.fromkeys(EDGES, LEAVES | {"common", "detect", "link"}),
    "server": LEAVES | {"common", "server.wsgi"},
    "server.wsgi": set(),
    # dashboards as code: in the catalogue's names, and so beside the edges, not among them
    "grafana": LEAVES | {"export"},
    "alerts": set(),
    "replay": {"_checks", "_records", "detect"},
    # what records, detects and serves: in a process of its own, which never imports torch
    "watcher": LEAVES | {"common", "detect", "export", "link", "ranks", "recorder", "server", "store", "system"},
    # the training process, from the parts up to the front
    "run._disabled": LEAVES | {"control", "run._engine", "run._run"},
    "run._log": {"_records", "common"},
    "run._open_runs": {"_errors"},
    "run._optimizers": {"common"},
    "run._sigterm": set(),
    "run._notebook": set(),
    "run._html": {"_records"},
    "run._listener": {"control", "link"},
    "run._identity": {"_records", "_version", "control", "store"},
    "run._resume": {"_errors", "_settings", "store"},
    "run._run_events": {"_records", "control", "link"},
    "run._logged": {"common", "probe"},
    "run._callbacks": {"_records", "control", "link", "run._log"},
    "run._launcher": {"control"},
    "run._training_side": LEAVES | {"control", "link", "probe", "run._launcher", "run._logged", "system"},
    "run._thread_watcher": {"_records", "link", "watcher", "run._callbacks", "run._training_side"},
    "run._restarts": set(),
    "run._questions": set(),
    "run._retained": {"link"},
    "run._link_reader": {"link"},
    "run._callback_thread": {"_records", "link", "run._callbacks"},
    "run._state_report": {"link", "run._training_side"},
    "run._outbox": {"common", "link", "run._questions", "run._retained", "run._state_report", "run._training_side"},
    "run._link": {"common", "link"}
    | {f"run.{name}" for name in ("_link_reader", "_outbox", "_questions", "_restarts")},
    "run._process_watcher": LEAVES
    | {"common", "link", "server.wsgi", "store"}
    | {f"run.{name}" for name in ("_callback_thread", "_callbacks", "_link", "_outbox", "_questions")}
    | {f"run.{name}" for name in ("_state_report", "_training_side")},
    "run._watcher_form": {"_records", "link"}
    | {f"run.{name}" for name in ("_callbacks", "_process_watcher", "_thread_watcher", "_training_side")},
    "run._engine": LEAVES
    | {"common", "control", "detect", "link", "store"}
    | {
        f"run.{name}"
        for name in (
            "_callbacks",
            "_identity",
            "_launcher",
            "_listener",
            "_notebook",
            "_open_runs",
            "_optimizers",
            "_resume",
        )
    }
    | {f"run.{name}" for name in ("_notebook", "_run_events", "_sigterm")}
    | {f"run.{name}" for name in ("_training_side", "_watcher_form")},
    "run._run": LEAVES | {"control", "run._engine", "run._html"},
    "run._attach": LEAVES
    | {"control", "detect"}
    | {f"run.{name}" for name in ("_disabled", "_engine", "_log", "_notebook", "_open_runs", "_optimizers", "_run")},
    "run._find": {f"run.{name}" for name in ("_open_runs", "_optimizers", "_run")},
    "run": {"run._attach", "run._find", "run._run"},
    # runs that begin by themselves, above all of it
    "auto": LEAVES
    | {"probe", "run"}
    | {f"run.{name}" for name in ("_attach", "_engine", "_log", "_open_runs", "_optimizers", "_restarts")},
    "integrations": LEAVES | {"run"},
    "__init__": LEAVES | {"_version", "control", "detect", "run"},
    # the command line: HTTP and run folders; only the demo reaches for a run
    "cli._client": {"_records", "_settings", "store"},
    "cli._terminal": {"common", "store"},
    "cli._format": {"common"},
    "cli._reach": {"_settings", "cli._client", "cli._terminal", "store"},
    "cli._screen": {"cli._format", "common"},
    "cli._stall": {"_errors", "_records", "cli._client", "store"},
    "cli._demo": {"_errors", "_records", "cli._terminal", "export", "run", "server", "store"},
    "cli._stack": {"alerts", "grafana", "store"},
    "cli._dashboards": {"_records", "grafana"}
    | {f"cli.{name}" for name in ("_client", "_reach", "_stack", "_terminal")},
    "cli._top": {"_records", "store"}
    | {f"cli.{name}" for name in ("_client", "_format", "_reach", "_screen", "_terminal")},
    "cli._remove": {"cli._client", "cli._terminal", "store"},
    "cli._replay": {"cli._terminal", "detect", "replay"},
    "cli._run": {"_settings"},
    "cli._open": {"_errors", "cli._client", "cli._reach", "cli._terminal", "server", "store", "watcher"},
    "cli._export": {"_errors", "cli._client", "cli._terminal", "store"},
    "cli._main": {"_version", "common", "store"}
    | {f"cli.{name}" for name in ("_client", "_format", "_reach", "_stall", "_terminal")},
    "cli": {"cli._main"},
    "__main__": {"cli"},
}
BY_MODULE = {"run", "cli"}
"""The packages whose modules stand in the plan one by one."""

# Library -> packages or modules that may import it. A library that is not named here may be imported by none.
OUTSIDE: dict[str, set[str]] = {
    "torch": {"auto", "probe", "control"}
    | {f"run.{name}" for name in ("_attach", "_engine", "_identity", "_logged", "_optimizers")}
    | {"run._resume", "run._training_side"},
    "prometheus_client": {"export"},
    "psutil": {"system", "watcher"},
    "pynvml": {"system"},
    "flask": {"server"},
    "werkzeug": {"server"},
    "itsdangerous": {"server"},
    "cheroot": {"server.wsgi"},
    "plotly": {"server"},
    "platformdirs": {"store"},
    "pyarrow": {"store"},
    "click": {
        f"cli.{name}"
        for name in (
            "_main",
            "_reach",
            "_dashboards",
            "_demo",
            "_export",
            "_open",
            "_remove",
            "_replay",
            "_run",
            "_terminal",
            "_top",
        )
    },
    "rich": {"cli._format", "cli._screen", "cli._top"},
    "grafana_client": {"grafana"},
    **{name: {"integrations"} for name in ("accelerate", "ignite", "lightning", "pytorch_lightning", "transformers")},
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in modules()}


def line_of(path: Path) -> str:
    """Return the line of the plan for a module: its own, else that of its package."""
    names = name_of(path).split(".")[1:] or ["__init__"]
    own = ".".join(names)
    if names[0] in BY_MODULE or own in MAY_IMPORT:
        return own
    return next((one for i in range(len(names), 0, -1) if (one := ".".join(names[:i])) in MAY_IMPORT), own)


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


def lines_and_libraries(path: Path) -> tuple[set[str], set[str]]:
    lines, libraries = set(), set()
    for name in imports(path):
        if name in MODULES:
            lines.add(line_of(MODULES[name]))
        else:
            libraries.add(name.split(".")[0])
    return lines - {line_of(path)}, libraries - set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_what_the_plan_allows(path: Path) -> None:
    """Packages import downwards only, edges never each other, and each outside library has its packages."""
    line = line_of(path)
    assert line in MAY_IMPORT, f"{line} is not in the plan: add it to tests/test_layers.py with what it may import"
    lines, libraries = lines_and_libraries(path)
    assert lines <= MAY_IMPORT[line], f"{line} may not import {sorted(lines - MAY_IMPORT[line])}"
    foreign = {library for library in libraries if line not in OUTSIDE.get(library, set())}
    assert not foreign, f"{line} may not import {sorted(foreign)}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    """The graph of the modules has no circle, the imports for the type checker alone included."""
    graph = {name: {one for one in imports(path) if one in MODULES} for name, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_plan_itself_has_no_circle() -> None:
    """No two lines of the plan allow what would make a circle between them."""
    TopologicalSorter(MAY_IMPORT).prepare()


def test_edges_never_import_each_other() -> None:
    """The plan itself keeps the edges apart, and the core free of every outside library."""
    for edge in EDGES:
        assert not MAY_IMPORT[edge] & EDGES
    for users in OUTSIDE.values():
        assert not users & (CORE | LEAVES)


def test_the_plan_names_nothing_that_is_gone() -> None:
    """A package or module that no longer exists has no place in the plan."""
    existing = {line_of(path) for path in modules()}
    assert set(MAY_IMPORT) <= existing
    assert set().union(*OUTSIDE.values()) <= existing


def test_few_modules_stand_beside_the_packages() -> None:
    """Beside the packages stand the front door, the command's entry and the leaves."""
    assert len({path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}) <= NUM_BESIDE


def test_the_front_door_and_the_command_line_import_no_torch() -> None:
    """Importing monitor and every module of the command line leaves torch out; attach and the demo load it."""
    names = [name for name in MODULES if name == "monitor" or name.startswith("monitor.cli")]
    code = f"import sys, {', '.join(names)}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_training_process_imports_no_sqlite() -> None:
    """What attach needs beside the watcher process takes neither SQLite nor what the command line draws with."""
    code = (
        "import sys, torch; before = set(sys.modules); import monitor.run, monitor.run._process_watcher; "
        "print(sorted({'sqlite3', 'rich'} & set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_watcher_imports_no_torch() -> None:
    """What runs in the watcher process starts without torch, whatever module of it is loaded."""
    names = [name for name in MODULES if name.startswith(("monitor.watcher", "monitor.link", "monitor.recorder"))]
    code = f"import sys, {', '.join(names)}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_training_process_loads_no_server() -> None:
    """With a watcher process, what attach loads serves nothing: no flask, no cheroot, no prometheus_client."""
    code = "import sys, monitor.run, monitor.run._process_watcher; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"flask", "cheroot", "prometheus_client", "monitor.server", "monitor.watcher"} & set(done.stdout.split())


def test_the_wheel_holds_every_module() -> None:
    """setuptools finds a package by its __init__.py, and is given the examples that `monitor demo` runs."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert build["packages"]["find"] == {"include": ["monitor*"], "namespaces": False}
    assert {path.parent for path in modules()} == {path.parent for path in PACKAGE.rglob("__init__.py")}
    assert build["package-dir"]["monitor._examples"] == "examples"
    examples = {f"monitor._examples.{path.stem}" for path in (ROOT / "examples").glob("*.py")}
    assert set(build["py-modules"]) == examples | {"_training_monitor"}


def test_the_wheel_holds_every_file_that_is_no_module() -> None:
    """The page, the description of the API and the configuration of the servers come along."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    shipped = {path for pattern in build["package-data"]["monitor"] for path in PACKAGE.glob(pattern)}
    others = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert others - shipped == set()
