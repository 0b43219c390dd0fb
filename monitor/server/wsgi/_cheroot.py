"""cheroot, made fit to live inside somebody else's process.

As it comes, cheroot gives every new connection to a worker that then waits for its first byte, does TLS
handshakes in the accepting thread, times out single reads but not requests, keeps the process alive through
its threads, and prints to stderr. Here a connection reaches a worker only once it has something to say, a
request has a deadline, the threads are daemons, and what goes wrong goes to logging.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import ssl
import sys
import time
from collections.abc import Callable
from typing import Any

from cheroot.wsgi import Gateway_10, Server

from monitor.server.wsgi._connection import Connection, raw_problem
from monitor.server.wsgi._open import MAX_KNOWN, MAX_STRANGERS, OpenConnections
from monitor.server.wsgi._problem import document
from monitor.server.wsgi._workers import Workers

_LOG = logging.getLogger("monitor")
NUM_THREADS = 12  # more than a few clients that hang; few enough not to crowd the training thread out
MAX_UNACCEPTED = 1024  # connections that the system holds for us; who finds no place among them waits a second
PACE_SECONDS = 0.002  # between two new connections, while strangers have taken more CPU than is theirs
IDLE_SECONDS = 10
MAX_HEADER_BYTES = 32 * 1024
MAX_BODY_BYTES = 1024 * 1024  # the application refuses much earlier, and says so
VOUCH = "monitor.vouch"
"""Where in the environ of a request the application finds what it calls once the request is authenticated."""


class _Gateway(Gateway_10):
    """Tell the application how to say that it knows who asks."""

    def get_environ(self) -> Any:
        return {**super().get_environ(), VOUCH: self.req.conn.vouch}  # type: ignore[no-untyped-call]


class CheroServer(Server):
    """The WSGI server itself."""

    ConnectionClass = Connection
    keep_alive_conn_limit = MAX_STRANGERS + MAX_KNOWN
    max_request_header_size = MAX_HEADER_BYTES
    max_request_body_size = MAX_BODY_BYTES

    def __init__(
        self,
        address: tuple[str, int] | str,
        app: Any,
        num_threads: int,
        on_error: Callable[[BaseException], None],
        listening: socket.socket | None = None,
    ) -> None:
        super().__init__(address, app, server_name="monitor", request_queue_size=MAX_UNACCEPTED, timeout=IDLE_SECONDS)
        self.shutdown_timeout = 1.0
        self.software = "monitor"
        self.on_error = on_error
        self.bind_error: OSError | None = None
        self._listening = listening
        self.gateway = _Gateway
        self.open_connections = OpenConnections()
        self.requests = Workers(num_threads, keep=self._keep, turn_away=self._turn_away, on_error=on_error)
        self._seconds = 0.0  # of CPU that the accepting thread has used

    def prepare(self) -> None:
        # systemd's variable: with it, cheroot would serve on descriptor 3, whatever that is in a training script.
        activated = os.environ.pop("LISTEN_PID", None)
        try:
            super().prepare()
        finally:
            if activated is not None:
                os.environ["LISTEN_PID"] = activated

    def bind_unix_socket(self, bind_addr: Any) -> None:
        """Use the socket that was given: everybody could connect to cheroot's own."""
        self.socket, self.bind_addr = self._listening, bind_addr

    def bind(self, family: int, type: int, proto: int = 0) -> Any:  # noqa: A002 - cheroot's name
        try:
            return super().bind(family, type, proto)
        except OSError as error:
            self.bind_error = error  # cheroot's own error has lost the number
            raise

    @staticmethod
    def bind_socket(socket_: socket.socket, bind_addr: Any) -> socket.socket:
        if os.name == "posix":  # cheroot leaves it out for port 0; connections of yesterday must not keep a port
            socket_.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            socket_.bind(bind_addr)
        except OSError:
            socket_.close()
            raise
        return socket_

    def process_conn(self, connection: Connection) -> None:
        """Give a connection to a worker once there is something to read, so that idle ones hold none. The accepting
        thread alone calls this."""
        is_new, connection.is_new = connection.is_new, False
        if is_new:
            connection.is_known = self._listening is not None  # who opens the socket in the folder is the owner
            self.open_connections.put(connection)
            self.put_conn(connection)
        elif connection.is_aborted:
            connection.close()
        else:
            self.requests.put(connection)
        used, self._seconds = time.thread_time() - self._seconds, time.thread_time()
        if self.requests.spend(used, is_known=connection.is_known) and is_new:
            time.sleep(PACE_SECONDS)

    def _keep(self, connection: Connection) -> None:
        if connection.rfile.has_data():  # a request that was sent ahead
            self.requests.put(connection)
        else:
            self.put_conn(connection)

    def error_log(self, msg: str = "", level: int = logging.INFO, traceback: bool = False) -> None:
        error = sys.exc_info()[1]
        if level >= logging.ERROR and error is not None:
            self.on_error(error)
        _LOG.log(level if level >= logging.ERROR else logging.DEBUG, "%s", msg, exc_info=traceback)

    def forget_statistics(self) -> None:
        """Take this server out of the table that cheroot keeps in the logging module for good."""
        table = getattr(logging, "statistics", {})
        for key in [key for key, value in table.items() if value is self.stats]:
            del table[key]

    def _turn_away(self, connection: Connection) -> None:
        if not isinstance(connection.socket, ssl.SSLSocket):
            body = document(503, "Clients without a token use as much CPU as they may; try again in a moment.")
            with contextlib.suppress(OSError):
                connection.socket.settimeout(0)
                connection.socket.send(raw_problem("503 Service Unavailable", body, "Retry-After: 1\r\n"))
        connection.close()
