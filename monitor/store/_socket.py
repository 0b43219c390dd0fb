"""The Unix socket in a run folder: how a command on the same machine reaches its run, without a port and a token."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path

from monitor.store._trusted import opened

SOCKET = "socket"
_HAS_SOCKETS = hasattr(socket, "AF_UNIX")
_BACKLOG = 64


def listen(path: Path) -> socket.socket:
    """Return a socket that listens in a run folder, in place of any that an earlier process has left. The user alone,
    and root, can connect.

    Raises:
        OSError: the folder is not to be used, or the system or the file system has no such sockets.
    """
    with opened(path) as folder:
        folder.remove(SOCKET)
        listening = _new()
        try:
            listening.bind(folder.address(SOCKET))
            folder.close_to_others(SOCKET)
            listening.listen(_BACKLOG)
        except BaseException:
            listening.close()
            raise
    return listening


def connect(path: Path, seconds: float = 1.0) -> socket.socket:
    """Return a connection to the run of a folder; ``seconds`` is what each of its operations may take.

    Raises:
        OSError: nobody listens there. UntrustedError: who listens may be somebody else.
    """
    with opened(path) as folder:
        folder.check_socket(SOCKET)
        connection = _new()
        try:
            connection.settimeout(seconds)
            connection.connect(folder.address(SOCKET))
        except BaseException:
            connection.close()
            raise
    return connection


def leave(path: Path) -> None:
    """Take the socket out of a folder. Safe to repeat. Raises OSError."""
    with suppress(FileNotFoundError), opened(path) as folder:
        folder.remove(SOCKET)


def answers(path: Path) -> bool:
    """Tell whether a run on this machine listens in a folder."""
    try:
        connect(path).close()
    except (OSError, ValueError):
        return False
    return True


def _new() -> socket.socket:
    if not _HAS_SOCKETS:
        raise OSError("this system has no Unix sockets")
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
