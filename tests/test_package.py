"""The wheel: what is in it, that two builds are one, and what the checks of the supply chain say."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from monitor._version import __version__
from tests.requirements import need_module

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("monitor", "examples", "pyproject.toml", "README.md", "LICENSE")
BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
EPOCH = "1700000000"
NAME = f"training_monitor-{__version__}"
METADATA = ("licenses/LICENSE", "METADATA", "WHEEL", "entry_points.txt", "top_level.txt", "RECORD")
SHIPPED = (".py", ".js", ".css", ".html", ".svg", ".json", ".yml", ".typed")
"""The kinds of files that the package has."""


def build(home: Path, time: int, seed: str) -> Path:
    """Build the wheel from a copy of the sources, whose files are of that time; return it."""
    source = home / "source"
    source.mkdir(parents=True)
    for name in SOURCES:
        ignored = shutil.ignore_patterns("__pycache__")
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source / name)
    for path in (source, *source.rglob("*")):
        os.utime(path, (time, time))
    environment = {**os.environ, "SOURCE_DATE_EPOCH": EPOCH, "PYTHONHASHSEED": seed}
    words = [sys.executable, "-c", BUILD, str(home)]
    done = subprocess.run(words, cwd=source, env=environment, capture_output=True, text=True, umask=0o022)
    assert done.returncode == 0, done.stderr
    (wheel,) = home.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Path]:
    need_module("setuptools")
    root = tmp_path_factory.mktemp("wheels")
    return build(root / "one", 10**9, "1"), build(root / "two", 1_600_000_000, "2")


def test_two_builds_are_the_same_bytes(wheels: Sequence[Path]) -> None:
    """Of the same sources, in another folder, at another time and with another seed of the hashes."""
    one, two = (hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in wheels)
    assert one == two


def test_the_wheel_holds_what_is_listed_and_nothing_else(wheels: Sequence[Path]) -> None:
    """Each module and file of the package, the examples, and what describes a wheel: no test, no cache, no secret."""
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "monitor").rglob("*") if path.suffix in SHIPPED}
    examples = {f"monitor/_examples/{path.name}" for path in (ROOT / "examples").glob("*.py")}
    with zipfile.ZipFile(wheels[0]) as wheel:
        assert wheel.testzip() is None
        assert {name for name in wheel.namelist() if not name.endswith("/")} == package | examples | {
            f"{NAME}.dist-info/{name}" for name in METADATA
        }
        assert all(entry.external_attr >> 16 & 0o7777 in (0o644, 0o664) for entry in wheel.infolist())


AUDIT = ROOT / ".ci" / "audit"
ANSWERS = {
    "clean": ('{"dependencies": [{"name": "a", "version": "1", "vulns": []}]}', 0, "1 packages, none with a known"),
    "nothing known": ('{"dependencies": [{"name": "a", "skip_reason": "not found"}]}', 0, "not audited: no data"),
    "no network": ("", 0, "not audited: "),
    "a hole": (
        '{"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]}]}',
        1,
        "a 1: CVE-1, mended in 2",
    ),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_an_audit_says_what_it_found_or_why_it_could_not(case: str, tmp_path: Path) -> None:
    """A hole fails; where no data can be had, that is said, and not taken for none."""
    answer, status, told = ANSWERS[case]
    tool = tmp_path / "pip-audit"
    tool.write_text(
        f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\n" + ("exit 1\n" if case in ("a hole", "no network") else "")
    )
    tool.chmod(0o755)
    done = subprocess.run([sys.executable, str(AUDIT), str(tool), sys.executable], capture_output=True, text=True)
    assert (done.returncode, told in done.stdout) == (status, True), done
