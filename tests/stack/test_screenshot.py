"""The screenshot script: its address always, its picture where there is a Grafana."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "dashboards" / "screenshot.py"


def test_without_a_grafana_the_script_says_what_it_needs(tmp_path: Path) -> None:
    """Without GRAFANA_URL it is exit status 2 and a message, and no file."""
    environment = {name: value for name, value in os.environ.items() if name != "GRAFANA_URL"}
    command = [sys.executable, str(SCRIPT), "run", str(tmp_path / "run.png")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "set GRAFANA_URL" in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_examples_of_the_script_hold() -> None:
    """The address that the script opens is the one that its docstring shows."""
    subprocess.run([sys.executable, "-m", "doctest", str(SCRIPT)], check=True, capture_output=True)


@pytest.mark.skipif("GRAFANA_URL" not in os.environ, reason="needs a Grafana with the dashboards: set GRAFANA_URL")
@pytest.mark.parametrize("name", ["overview", "run", "compare", "hardware"])
def test_a_dashboard_is_rendered(tmp_path: Path, name: str) -> None:
    """A real Grafana draws every panel of the dashboard without an error."""
    path = tmp_path / f"{name}.png"
    subprocess.run([sys.executable, str(SCRIPT), name, str(path)], check=True, timeout=180)
    assert path.stat().st_size > 20_000
