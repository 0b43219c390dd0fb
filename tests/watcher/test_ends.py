"""How a run and its watcher end where one of them is stopped, or where other processes stand between them."""

from __future__ import annotations

import subprocess
import textwrap
from pathlib import Path
from typing import Any

import psutil
import pytest

from monitor.run._process_watcher import ANSWER_SECONDS
from tests.conftest import watchers
from tests.watcher.test_process import (
    PATIENCE_SECONDS,
    PRELUDE,
    Script,
    gone,
    parent,
    pid_of_watcher,
    wait_for,
)

LAUNCHER = """
import ctypes, subprocess
PR_SET_CHILD_SUBREAPER = 36
assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, {is_subreaper}, 0, 0, 0) == 0
training = subprocess.Popen([sys.executable, "-W", "ignore", "training.py"])
{then}
"""


@pytest.mark.parametrize(("num_entries", "state"), [(0, "finished"), (12_000, "vanished")])
def test_a_watcher_that_is_stopped_does_not_delay_the_end(num_entries: int, state: str, tmp_path: Path) -> None:
    """The end waits for no answer. Once the watcher continues it finds the end in the pipe; a pipe that was full had no
    room for it, and the run has vanished as far as the watcher can know."""
    script = Script(
        tmp_path,
        f"""
        run = attach(); train(3); run.flush(); say()
        sys.stdin.readline()
        while run._engine._training.buffer.last_sequence < {num_entries}: optimizer.step()
        begin = time.monotonic(); run.close(); say(time.monotonic() - begin)
        """,
        stdin=subprocess.PIPE,
    )
    script.hear()
    watcher = psutil.Process(pid_of_watcher(script))
    watcher.suspend()
    try:
        assert script.process.stdin is not None
        with script.process.stdin as stdin:
            stdin.write("\n")
        assert float(script.hear()[0]) < ANSWER_SECONDS
        assert script.process.wait(PATIENCE_SECONDS) == 0
    finally:
        watcher.resume()
    wait_for(lambda: gone(watcher.pid), "the end of the watcher")
    assert script.state() == state
    script.end()


def launch(tmp_path: Path, training: str, **launcher: Any) -> Script:
    """Start a script that starts a training as its child."""
    (tmp_path / "training.py").write_text(PRELUDE + textwrap.dedent(training))
    return Script(tmp_path, LAUNCHER.format(**launcher))


def test_a_launcher_that_adopts_orphans_is_left_no_process(tmp_path: Path) -> None:
    """Below a subreaper the watcher is its child: it knows of the end of the training all the same, ends by itself, and
    has started nothing that would stay."""
    training = "run = attach(); train(3); run.flush(60); say(os.getpid()); wait()"
    script = launch(tmp_path, training, is_subreaper=1, then="wait()")
    (pid,) = script.hear()
    (watcher,) = watchers(script.runs_directory)
    assert parent(watcher) == script.process.pid
    assert watcher.children(recursive=True) == []
    psutil.Process(int(pid)).kill()
    wait_for(lambda: gone(watcher.pid), "the end of the watcher")
    assert script.state() == "vanished"
    assert [one for one in psutil.Process(script.process.pid).children() if not gone(one.pid)] == []
    script.end()


def test_a_training_whose_launcher_ends_is_watched_until_its_own_end(tmp_path: Path) -> None:
    """A training that is given another parent goes on, and so does its watcher; killed then, it has vanished."""
    training = """
    launcher = os.getppid()
    run = attach(); train(3); run.flush(60); say(os.getpid())
    while os.getppid() == launcher: time.sleep(0.01)
    time.sleep(1); train(3)
    say(run.flush(60), run.state, run.snapshot().optimizers[0].steps); wait()
    """
    script = launch(tmp_path, training, is_subreaper=0, then="wait()")
    (pid,) = script.hear()
    (watcher,) = watchers(script.runs_directory)
    script.process.kill()
    script.process.wait()
    assert script.hear() == ["True", "running", "6"]
    assert [one.pid for one in watchers(script.runs_directory)] == [watcher.pid]
    psutil.Process(int(pid)).kill()
    wait_for(lambda: gone(watcher.pid), "the end of the watcher")
    assert script.state() == "vanished"
    script.end()
