"""Servers that a command takes for a run's own: by the key in its folder, or by the socket there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from monitor.server import OWNER, HttpServer, LocalServer, RunAccess, Security, create_app
from monitor.store import RunFolder, connect, listen, proof
from tests.server.fake_run import READ_TOKEN, TOKEN

KEY = "0123456789abcdef" * 4


def proving(run_id: str, key: str = KEY) -> Callable[[str, int], str]:
    """What ``create_app`` takes as ``prove`` for the run of :func:`announce`."""
    return lambda nonce, port: proof(key, run_id, nonce, port)


def announce(folder: RunFolder, url: str) -> None:
    """Write into a folder where its run is served."""
    folder.announce(url, KEY)


@contextmanager
def serving(run: RunAccess, run_id: str) -> Iterator[HttpServer]:
    """Serve a run at a port, as its own server."""
    app = create_app(run, Security(token=TOKEN, read_token=READ_TOKEN), prove=proving(run_id))
    with HttpServer(app, port=0) as server:
        yield server


@contextmanager
def serving_in(folder: RunFolder, app: Any) -> Iterator[LocalServer]:
    """Serve an application at the socket of a folder."""

    def owned(environ: dict[str, Any], start_response: Any) -> Any:
        return app({**environ, OWNER: True}, start_response)

    with LocalServer(owned, listen(folder.path), connect=lambda: connect(folder.path)) as server:
        yield server
