"""A Python that starts as one does in which the package was installed, and programs that run by it."""

from __future__ import annotations

import ast
import os
import site
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from monitor.store import STORE_FILE, KnownRun, StoreReader, list_runs

ROOT = Path(__file__).parents[2]


def pth() -> tuple[str, str]:
    """Return name and text of the file that the wheel brings for Python's start. Read, not imported: setuptools patches
    what it finds in the process."""
    found = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    return found["PTH"], found["LINE"]


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the packages of this one, this very package, and the file for Python's start."""
    home = tmp_path_factory.mktemp("python")
    venv.create(home, with_pip=False, symlinks=os.name != "nt")
    (folder,) = {sysconfig.get_path("purelib", vars={"base": str(home)}, scheme="venv")}
    name, line = pth()
    Path(folder, name).write_text(line)
    Path(folder, "packages.pth").write_text("\n".join([str(ROOT), *site.getsitepackages()]))
    return home / ("Scripts" if os.name == "nt" else "bin") / Path(sys.executable).name


class Done:
    """A program that has ended, and the runs that it has left."""

    def __init__(self, process: subprocess.CompletedProcess[str], directory: Path) -> None:
        self.rc, self.out, self.err = process.returncode, process.stdout, process.stderr
        self.runs: list[KnownRun] = list_runs(directory)

    @property
    def states(self) -> list[str]:
        return [run.state for run in self.runs]

    def final(self, number: int = 0) -> dict[str, Any]:
        """Return the last state of a run."""
        found = self.runs[number].read_final()
        assert found is not None
        return found

    def events(self, number: int = 0) -> list[dict[str, Any]]:
        """Return the events of a run."""
        with StoreReader(self.runs[number].path / STORE_FILE) as store:
            return store.events()

    def curve(self, column: str, optimizer: str | None = None, number: int = 0) -> list[float]:
        """Return what a run has recorded of its first optimizer, or of another one."""
        key = optimizer or self.final(number)["optimizers"][0]["key"]
        with StoreReader(self.runs[number].path / STORE_FILE) as store:
            return [point.mean for point in store.rows("optimizer", key, column)]


Go = Callable[..., Done]


@pytest.fixture
def go(python: Path, tmp_path: Path) -> Go:
    """Run this Python with some words and variables, ``MONITOR=1`` among them, and wait for its end."""

    def run(*words: str, monitor: str | None = "1", code: str | None = None, **variables: str) -> Done:
        directory = tmp_path / "runs-of-programs"
        environment = {
            **{name: value for name, value in os.environ.items() if name not in ("MONITOR_STORE_BYTES", "PYTHONPATH")},
            "MONITOR_DIR": str(directory),
            "MONITOR_SERVE": "0",
            "MONITOR_GPU": "0",
            "MONITOR_GRADIENT_NORM": "1",
            **({} if monitor is None else {"MONITOR": monitor}),
            **variables,
        }
        script = tmp_path / "cifar" / "train.py"
        script.parent.mkdir(exist_ok=True)
        script.write_text(code or "")
        process = subprocess.run(
            [str(python), *(words or (str(script),))],
            env=environment,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=300,
            check=False,
        )
        return Done(process, directory)

    return run
