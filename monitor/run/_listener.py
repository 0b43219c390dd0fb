"""The socket at which rank 0's watcher takes the shares of the other ranks.

It is opened in the training process, before there is a watcher: so its address is known at once, and stays the same
where another watcher takes over.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress

from monitor.control import store_host
from monitor.link import far

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Listener:
    """A socket that listens, and under which host the other ranks reach it."""

    def __init__(self, listening: socket.socket, host: str) -> None:
        self.port: int = listening.getsockname()[1]
        self.host = host
        self.descriptor = far(listening.detach())

    def close(self) -> None:
        """Close it in this process. Safe to repeat."""
        descriptor, self.descriptor = self.descriptor, -1
        with suppress(OSError):
            if descriptor >= 0:
                os.close(descriptor)


def open_listener(environ: Mapping[str, str] = os.environ) -> Listener:
    """Open one where the other ranks reach it: on loopback where all are on this host, else at the address of the
    process group's store.

    Raises:
        OSError: no socket can be opened.
    """
    host = store_host() or environ.get("MASTER_ADDR", "")
    num_local, num_ranks = (environ.get(name) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    if host in _LOOPBACK or (num_local is not None and num_local == num_ranks):
        return Listener(socket.create_server(("127.0.0.1", 0)), "127.0.0.1")
    host = host or socket.gethostname()
    try:
        listening = socket.create_server((host, 0))
    except OSError:  # the store is on another host
        return Listener(socket.create_server(("", 0)), socket.gethostname())
    if not listening.getsockname()[0].startswith("127."):
        return Listener(listening, host)
    listening.close()  # the name of this host means loopback here, and its address elsewhere
    return Listener(socket.create_server(("", 0)), host)
