"""Serve over a Unix socket: for whoever may open the folder in which it lies."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from monitor.server.wsgi._cheroot import CheroServer
from monitor.server.wsgi._serving import Serving

NUM_LOCAL_THREADS = 4
"""Commands of one user; what floods the port has threads and connections of its own."""


class LocalServer(Serving):
    """Serve a WSGI application at a Unix socket that listens already.

    Args:
        app: the application.
        listening: the socket, which is closed at the end.
        connect: connects to it, which wakes it.
        on_error: hears of failures inside the server.
    """

    def __init__(
        self,
        app: Any,
        listening: socket.socket,
        *,
        connect: Callable[[], socket.socket],
        on_error: Callable[[BaseException], None] = lambda _: None,
    ) -> None:
        server = CheroServer("", app, NUM_LOCAL_THREADS, on_error, listening)
        try:
            server.prepare()
        except BaseException:
            server.requests.stop()
            listening.close()
            raise
        super().__init__(server, on_error, lambda: connect().close())
