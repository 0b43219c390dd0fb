"""The address of the page of ``torch.distributed.debug``, where that runs."""

from __future__ import annotations

import socket
import sys

import psutil


def read_debug_page() -> str | None:
    """Return the address of the debug server that this process has started; None without one.

    torch does not keep the port: it is the one on which the server's process listens and this one does not, whose ports
    a fork inherits. Imports nothing.

    >>> read_debug_page()  # none was started here
    """
    process = getattr(sys.modules.get("torch.distributed.debug"), "_DEBUG_SERVER_PROC", None)
    if process is None:
        return None
    try:
        ports = _ports(psutil.Process(process.pid)) - _ports(psutil.Process())
    except (psutil.Error, OSError):
        return None
    return f"http://{socket.gethostname()}:{min(ports)}" if ports else None


def _ports(process: psutil.Process) -> set[int]:
    connections = process.net_connections("tcp") if hasattr(process, "net_connections") else process.connections("tcp")
    return {one.laddr.port for one in connections if one.status == psutil.CONN_LISTEN}
