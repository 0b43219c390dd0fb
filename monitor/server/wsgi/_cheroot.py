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
import queue
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from cheroot import errors
from cheroot.wsgi import Server

from monitor.server.wsgi._connection import Connection, raw_problem
from monitor.server.wsgi._problem import document

_LOG = logging.getLogger("monitor")
NUM_THREADS = 12  # more than a few clients that hang; few enough not to crowd the training thread out
MAX_CONNECTIONS = 128
MAX_QUEUED = 64
IDLE_SECONDS = 10
MAX_HEADER_BYTES = 32 * 1024
MAX_BODY_BYTES = 1024 * 1024  # the application refuses much earlier, and says so
_STOP = object()


class _Workers:
    """A fixed crew of daemon threads behind a bounded queue, in the form that cheroot asks of a pool."""

    def __init__(self, server: CheroServer, size: int) -> None:
        self.min = size
        self._server = server
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._busy: set[Connection] = set()
        self._is_stopping = False
        self.get = self._queue.get

    def start(self) -> None:
        for index in range(self.min):
            thread = threading.Thread(target=self._work, name=f"monitor-http-{index}", daemon=True)
            thread.start()
            self._threads.append(thread)

    @property
    def idle(self) -> int:
        return self.min - len(self._busy)

    @property
    def qsize(self) -> int:
        return self._queue.qsize()

    def put(self, connection: Connection) -> None:
        if self._is_stopping or self._queue.qsize() >= MAX_QUEUED:
            raise queue.Full
        self._queue.put(connection)

    def stop(self, timeout: float = 1.0) -> None:
        """Let answers under way finish within half of ``timeout`` (seconds), cut the rest, join."""
        self._is_stopping = True
        for _ in self._threads:
            self._queue.put(_STOP)
        for connection in list(self._busy):
            if not connection.is_responding:
                connection.abort()
        self._join(time.monotonic() + timeout / 2)
        for connection in list(self._busy):
            connection.abort()
        self._join(time.monotonic() + timeout / 2)

    def _join(self, deadline: float) -> None:
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while (connection := self._queue.get()) is not _STOP:
            if self._is_stopping:
                connection.close()
                continue
            self._busy.add(connection)
            try:
                self._serve(connection)
            except BaseException as error:  # noqa: BLE001 - a worker that dies would take a share of the server with it
                self._server.on_error(error)
                connection.close()
            finally:
                self._busy.discard(connection)

    def _serve(self, connection: Connection) -> None:
        try:
            keep = connection.communicate()
        except (OSError, errors.FatalSSLAlert):
            keep = False
        if not keep or self._is_stopping:
            connection.close()
            return
        try:
            self._server.put_conn(connection)
        except (OSError, ValueError, KeyError, RuntimeError):  # closed meanwhile: we are stopping
            connection.close()


class CheroServer(Server):
    """The WSGI server itself."""

    _connections: Any

    ConnectionClass = Connection
    keep_alive_conn_limit = MAX_CONNECTIONS
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
        super().__init__(address, app, server_name="monitor", request_queue_size=64, timeout=IDLE_SECONDS)
        self.shutdown_timeout = 1.0
        self.software = "monitor"
        self.on_error = on_error
        self.bind_error: OSError | None = None
        self._listening = listening
        self.requests = _Workers(self, num_threads)

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
        """Give a connection to a worker once there is something to read, so that idle ones hold none."""
        try:
            if not connection.is_new:
                self.requests.put(connection)
            elif self._connections._num_connections < MAX_CONNECTIONS:
                connection.is_new = False
                self.put_conn(connection)
            else:
                self._turn_away(connection)
        except queue.Full:
            self._turn_away(connection)

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
            body = document(503, "All connections are in use; try again in a moment.")
            with contextlib.suppress(OSError):
                connection.socket.settimeout(0)  # this is the accepting thread: it never waits for a client
                connection.socket.send(raw_problem("503 Service Unavailable", body, "Retry-After: 1\r\n"))
        connection.close()
