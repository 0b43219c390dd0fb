"""The address of torch's debug server, whose port torch keeps nowhere."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from monitor.system import read_debug_page

SERVER = """
import socket, sys
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
sys.stdin.read()
"""


@pytest.fixture
def server() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that listens, with this one's port among what it has been handed down."""
    with socket.create_server(("127.0.0.1", 0)) as own:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[own.fileno()],
        )
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
        process.communicate("")


def test_it_is_where_the_server_listens_and_this_process_does_not(
    server: tuple[subprocess.Popen[str], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fork inherits the ports of the training."""
    process, port = server
    monkeypatch.setitem(sys.modules, "torch.distributed.debug", SimpleNamespace(_DEBUG_SERVER_PROC=process))
    assert read_debug_page() == f"http://{socket.gethostname()}:{port}"


@pytest.mark.parametrize("debug", [None, SimpleNamespace(_DEBUG_SERVER_PROC=None), SimpleNamespace()])
def test_without_a_server_there_is_no_page(debug: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was not started, or this torch has none."""
    monkeypatch.setitem(sys.modules, "torch.distributed.debug", debug)
    assert read_debug_page() is None


def test_a_server_that_has_ended_or_listens_nowhere_has_no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process may be gone, or not be there yet."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        debug = SimpleNamespace(_DEBUG_SERVER_PROC=process)
        monkeypatch.setitem(sys.modules, "torch.distributed.debug", debug)
        assert read_debug_page() is None
        process.communicate(b"\n")
    assert read_debug_page() is None
