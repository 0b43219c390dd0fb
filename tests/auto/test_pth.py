"""What pip installs: the file that Python reads when it starts, from a wheel and from a clone."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.auto.conftest import ROOT, pth
from tests.requirements import need_module

PARTS = ("LICENSE", "README.md", "_training_monitor.py", "examples", "monitor", "pyproject.toml", "setup.py")
IS_LOADED = "import sys; print('_training_monitor' in sys.modules, any(name == 'monitor' for name in sys.modules))"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The files that a wheel is made of, where a build may leave others beside them."""
    need_module("setuptools")
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False).returncode:
        pytest.skip("needs pip")
    for part in PARTS:
        source, target = ROOT / part, tmp_path / "clone" / part
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.parent.mkdir(exist_ok=True)
            shutil.copy(source, target)
    return tmp_path / "clone"


@pytest.mark.parametrize("is_editable", [False, True], ids=["wheel", "editable"])
def test_an_install_brings_the_file_and_an_uninstall_takes_it_away(
    clone: Path, tmp_path: Path, is_editable: bool
) -> None:
    """Python loads the hook when it starts with MONITOR=1, and only then; monitor itself is not loaded."""
    venv.create(tmp_path / "env", with_pip=False, symlinks=os.name != "nt")
    python = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin") / Path(sys.executable).name
    (folder,) = (path for path in (tmp_path / "env").glob("*/*/site-packages") if not path.parents[1].is_symlink())
    (folder / "packages.pth").write_text("\n".join(site.getsitepackages()))
    install = ["install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    pip(python, *install, *(["--editable"] if is_editable else []), str(clone))
    name, line = pth()
    assert (folder / name).read_text() == line
    assert starts(python, MONITOR="1") == "True False\n"
    assert starts(python) == "False False\n"
    pip(python, "uninstall", "--quiet", "--yes", "training-monitor")
    assert not (folder / name).exists()


def pip(python: Path, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python), *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def starts(python: Path, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    done = subprocess.run(
        [str(python), "-c", IS_LOADED], env=environment, capture_output=True, text=True, check=True, cwd=python.parent
    )
    assert done.stderr == ""
    return done.stdout
