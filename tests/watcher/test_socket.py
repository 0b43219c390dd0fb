"""The socket in the folder of a real run: who reaches it, and what becomes of it."""

from __future__ import annotations

import os
import re
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from monitor.cli import main
from monitor.store import list_runs
from monitor.store._socket import SOCKET, answers, connect, listen
from tests.watcher.test_process import Trained, attach, wait_for, watcher_of


@pytest.fixture(params=["process", "thread"])
def form(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"watcher": request.param}


def call(directory: Path, *words: str) -> Any:
    return CliRunner().invoke(main, [*words, "--dir", str(directory)])


def test_commands_reach_a_run_whose_port_somebody_else_has(form: dict[str, Any], tmp_path: Path) -> None:
    """Whatever stands in its folder as its address: the socket is the way, and gone when the run is."""
    trained = Trained()
    with attach(trained.optimizer, directory=str(tmp_path), **form) as run:
        trained.train(1)
        (known,) = wait_for(lambda: list_runs(tmp_path), "the folder")
        wait_for(lambda: answers(known.path), "the socket")
        (known.path / "token").unlink()
        sent = call(tmp_path, "lr", "reduce", "0.5", "--no-wait")
        assert (sent.exit_code, sent.output) == (0, sent.output)
        wait_for(lambda: trained.train(1) or run.lr[0].factor == 0.5, "the factor")
    wait_for(lambda: SOCKET not in os.listdir(known.path), "the end of the watcher")


def test_all_of_a_run_that_is_secret_is_for_its_owner(form: dict[str, Any], tmp_path: Path) -> None:
    """Tokens, key and socket are 0600 whatever the umask is, each token is another one, and none is in the log."""
    before = os.umask(0)
    try:
        with attach(Trained().optimizer, directory=str(tmp_path), **form):
            (known,) = wait_for(lambda: list_runs(tmp_path), "the folder")
            wait_for(lambda: answers(known.path), "the socket")
            names = ("token", "read_token", "alert_token", "key", SOCKET)
            modes = {name: stat.S_IMODE((known.path / name).stat().st_mode) for name in names}
            secrets = {(known.path / name).read_text() for name in names[:-1]}
    finally:
        os.umask(before)
    assert set(modes.values()) == {0o600}
    assert len(secrets) == 4


@pytest.mark.parametrize("given", [{}, {"MONITOR_TOKEN": "a-token-of-the-environment"}])
def test_no_token_is_in_the_log(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has a code that is worth nothing after it was used, or minutes later."""
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    caplog.set_level("DEBUG", "monitor")
    with attach(Trained().optimizer, directory=str(tmp_path)) as run:
        (known,) = wait_for(lambda: list_runs(tmp_path), "the folder")
        wait_for(lambda: "/?code=" in caplog.text and answers(known.path), "the log")
        tokens = [(known.path / name).read_text().strip() for name in ("token", "read_token", "alert_token", "key")]
    assert re.search(rf"/\?code=\S+ \(once, for 15 minutes, then \S*monitor open {run.id} --dir \S+\)\n", caplog.text)
    assert not [token for token in tokens if token in caplog.text]


def test_the_next_watcher_listens_in_the_place_of_one_that_was_killed(tmp_path: Path) -> None:
    """The socket that it has left is no hindrance."""
    trained = Trained()
    with attach(trained.optimizer, directory=str(tmp_path), watcher="process") as run:
        (known,) = wait_for(lambda: list_runs(tmp_path), "the folder")
        wait_for(lambda: answers(known.path), "the socket")
        killed = watcher_of(run)
        killed.kill()
        wait_for(lambda: not answers(known.path), "the end of the watcher")
        wait_for(lambda: trained.train(1) or answers(known.path), "the next watcher")
        assert call(tmp_path, "status").exit_code == 0


def test_a_folder_with_a_long_path_has_one_too(tmp_path: Path) -> None:
    """The address of a socket has 107 bytes; where /proc is, the path may have more."""
    folder = tmp_path / ("d" * 120)
    folder.mkdir()
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc on this system: there the path must be short")
    with listen(folder) as listening, connect(folder) as connection, listening.accept()[0] as accepted:
        connection.sendall(b"here")
        assert accepted.recv(4) == b"here"


def test_a_forked_child_holds_no_socket(tmp_path: Path) -> None:
    """A worker that outlives the run does not keep its socket listening."""
    with attach(Trained().optimizer, directory=str(tmp_path), watcher="thread"):
        (known,) = wait_for(lambda: list_runs(tmp_path), "the folder")
        wait_for(lambda: answers(known.path), "the socket")
        taken, given = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(given, b"%d" % _num_listening())
            os._exit(0)
        os.waitpid(child, 0)
        assert os.read(taken, 9) == b"0"
        os.close(taken), os.close(given)


def _num_listening() -> int:
    """Return how many Unix sockets of this process listen; tests beside this one may have ports."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            copy = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue
        with copy:
            is_listening = bool(copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
            found += is_listening and copy.family == socket.AF_UNIX
    return found
