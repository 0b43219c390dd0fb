"""The command ``monitor run``."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from tests.auto.conftest import Done, Go
from tests.auto.test_begin import after

LOOK = """
import os, sys
print(sys.argv, __name__, sys.path[0], sorted(one for one in os.environ.items() if one[0].startswith("MONITOR")))
"""


def run(go: Go, *words: str, code: str = LOOK, **variables: str) -> Done:
    return go("-m", "monitor", "run", *words, code=code, monitor=None, **variables)


def test_a_script_is_run_as_by_python(go: Go, tmp_path: Path) -> None:
    """Its arguments, its name, its path and its environment, to which MONITOR=1 and the options are added."""
    script = tmp_path / "cifar" / "train.py"
    done, plain = (
        run(go, "--no-gpu", "--name", "mine", str(script), "--name", "its own", "-m"),
        go(str(script), "--name", "its own", "-m", code=LOOK, MONITOR_NAME="mine"),
    )
    assert (done.rc, done.err) == (0, "")
    assert done.out == plain.out
    assert "('MONITOR', '1')" in done.out


def test_a_script_that_trains_is_watched(go: Go, tmp_path: Path) -> None:
    """With the options as settings, by the name of its folder."""
    done = run(go, "--total-steps", "40", str(tmp_path / "cifar" / "train.py"), code=after("train(); sys.exit(7)"))
    assert (done.rc, [one.name for one in done.runs]) == (7, ["cifar"])
    assert done.final()["target_steps"] == 40


def test_a_module_and_a_program_are_run(go: Go) -> None:
    """The module by this Python, the program as the shell would find it."""
    assert run(go, "-m", "timeit", "-h").out.startswith("Tool for measuring execution time")
    assert run(go, sys.executable, "-c", "import os; print(os.environ['MONITOR'])").out == "1\n"
    assert run(go, sys.executable, "-c", "import os; os.kill(os.getpid(), 15)").rc == -signal.SIGTERM


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["no-such-program"], "there is no program 'no-such-program'; a script ends with .py"),
        (["--port", "x", "train.py"], "MONITOR_PORT='x' is not a valid int for port"),
        (["--token", "0123456789abcdef", "train.py"], "No such option '--token'"),
        ([], "Missing argument 'PROGRAM'"),
    ],
)
def test_what_cannot_be_run_is_refused(go: Go, words: list[str], line: str) -> None:
    """With the value and the cure, and the status of a wrong usage."""
    done = run(go, *words)
    assert done.rc == 2
    assert line in done.err


def test_a_python_without_the_file_is_refused(go: Go, tmp_path: Path) -> None:
    """Rather than to train without a monitor that was asked for."""
    done = go(
        "-c",
        "import sys; sys.executable, sys.argv = sys.base_prefix + '/bin/python3', ['monitor', 'run', 'train.py']; "
        "from monitor.cli import main; main()",
        monitor=None,
    )
    assert done.rc == 1
    assert "reads no training-monitor.pth when it starts" in done.err
