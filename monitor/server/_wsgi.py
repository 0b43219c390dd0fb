"""cheroot, made fit to live inside somebody else's process.

As it comes, cheroot gives every new connection to a worker that then waits for its first byte, does TLS
handshakes in the accepting thread, times out single reads but not requests, keeps the process alive through
its threads, and prints to stderr. Here a connection reaches a worker only once it has something to say, a
request has a deadline, the threads are daemons, and what goes wrong goes to logging.
"""

from __future__ import annotations

import _pyio  # type: ignore[import-not-found]  # what cheroot's own files are made of
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
from cheroot.makefile import StreamReader, StreamWriter
from cheroot.server import HTTPConnection, HTTPRequest
from cheroot.wsgi import Server

from monitor.server import _problems

_log = logging.getLogger("monitor.server")
NUM_THREADS = 6
MAX_CONNECTIONS = 128
MAX_QUEUED = 64
READ_SECONDS = 15.0  # for a whole request, however slowly it trickles in
WRITE_SECONDS = 60.0  # for a whole answer
IDLE_SECONDS = 10
MAX_HEADER_BYTES = 32 * 1024
_STOP = object()


class _TimedIO(socket.SocketIO):
    """A raw socket file whose reads and writes share the deadline of their connection."""

    def __init__(self, sock: socket.socket, mode: Any, connection: _Connection) -> None:
        super().__init__(sock, mode)
        self._connection = connection

    def readinto(self, b: Any) -> int | None:
        self._connection.limit_next_wait()
        return super().readinto(b)

    def write(self, b: Any) -> int | None:
        self._connection.begin_writing()
        self._connection.limit_next_wait()
        return super().write(b)


class _Reader(StreamReader):
    def __init__(self, raw: socket.SocketIO) -> None:
        _pyio.BufferedReader.__init__(self, raw, _pyio.DEFAULT_BUFFER_SIZE)
        self.bytes_read = 0


class _Writer(StreamWriter):
    def __init__(self, raw: socket.SocketIO) -> None:
        _pyio.BufferedWriter.__init__(self, raw, _pyio.DEFAULT_BUFFER_SIZE)
        self.bytes_written = 0


class _Headers(dict[bytes, bytes]):
    """The headers of a request: what may come once comes once, and X_Forged is not X-Forged."""

    _SINGLE = frozenset(
        [b"Host", b"Content-Length", b"Content-Type", b"Authorization", b"Idempotency-Key", b"X-Csrf-Token"]
    )

    def __setitem__(self, name: bytes, value: bytes) -> None:
        if b"_" in name:
            return
        if name in self._SINGLE and name in self:
            raise ValueError(f"The header {name.decode('latin-1')} is given more than once.")
        super().__setitem__(name, value)


class _Request(HTTPRequest):
    """A request whose protocol errors are problems too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.inheaders = _Headers()

    def read_request_headers(self) -> bool:
        if not super().read_request_headers():  # type: ignore[no-untyped-call]
            return False
        length = self.inheaders.get(b"Content-Length", b"0")
        if self.chunked_read and b"Content-Length" in self.inheaders:  # the seed of request smuggling
            self.simple_response("400 Bad Request", "Content-Length and Transfer-Encoding exclude each other.")
            return False
        if not length.isdigit():
            self.simple_response("400 Bad Request", "Content-Length must be a number of bytes.")
            return False
        return True

    def simple_response(self, status: str, msg: str = "") -> None:
        self.close_connection = True
        body = _problems.document(int(str(status)[:3]), msg or str(status)[4:])
        self.conn.wfile.write(_raw_problem(str(status), body))

    def send_headers(self) -> None:
        # Nothing after an unread body can be trusted to be the next request.
        if self.chunked_read and not getattr(self.rfile, "closed", True):
            self.close_connection = True
        super().send_headers()

    def respond(self) -> None:
        self.conn.is_responding = True
        try:
            super().respond()
        finally:
            self.conn.is_responding = False


class _Connection(HTTPConnection):
    """A connection with a deadline for the request at hand."""

    RequestHandlerClass = _Request

    def __init__(self, server: Any, sock: socket.socket, makefile: Any = None) -> None:  # noqa: ARG002 - cheroot gives one
        super().__init__(server, sock)
        self.rfile = _Reader(_TimedIO(sock, "rb", self))
        self.wfile = _Writer(_TimedIO(sock, "wb", self))
        self.is_new = True
        self.is_responding = False
        self._is_writing = False
        self._deadline = float("inf")

    def communicate(self) -> bool:
        self._deadline, self._is_writing = time.monotonic() + READ_SECONDS, False
        if isinstance(self.socket, ssl.SSLSocket) and self.requests_done == 0 and not self._shake_hands():
            return False
        self.requests_done += 1
        return bool(super().communicate())  # type: ignore[no-untyped-call]

    requests_done = 0

    def limit_next_wait(self) -> None:
        """Let the next socket call wait no longer than the request may still take."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")  # the words by which cheroot knows to answer 408
        self.socket.settimeout(min(left, self.server.timeout))

    def begin_writing(self) -> None:
        """Give the answer its own deadline at its first byte."""
        if not self._is_writing:
            self._is_writing, self._deadline = True, time.monotonic() + WRITE_SECONDS

    def abort(self) -> None:
        """Wake whoever waits on this connection, from another thread."""
        with contextlib.suppress(OSError):
            # Not SSLSocket's own, which drops the TLS state while the worker uses it.
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError, errors.FatalSSLAlert):
            super().close()

    def _shake_hands(self) -> bool:
        try:
            self.limit_next_wait()
            self.socket.do_handshake()
        except ssl.SSLError as error:
            _log.debug("TLS handshake with %s failed: %s", self.remote_addr, error)
            if error.reason == "HTTP_REQUEST":
                body = _problems.document(400, "This port speaks HTTPS only; use https:// in the URL.")
                with contextlib.suppress(OSError):
                    socket.socket.send(self.socket, _raw_problem("400 Bad Request", body))
            return False
        except (OSError, ValueError):
            return False
        return True


class TlsAdapter:
    """Wrap accepted sockets without waiting for their handshake: a worker does that, under the deadline."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context

    def bind(self, sock: socket.socket) -> socket.socket:
        return sock

    def wrap(self, sock: socket.socket) -> tuple[ssl.SSLSocket, dict[str, str]]:
        wrapped = self.context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        return wrapped, {"wsgi.url_scheme": "https", "HTTPS": "on"}

    def makefile(self, sock: socket.socket, mode: str = "r", bufsize: int = -1) -> Any:
        raise NotImplementedError  # connections make their own


class _Workers:
    """A fixed crew of daemon threads behind a bounded queue, in the form that cheroot asks of a pool."""

    def __init__(self, server: CheroServer, size: int) -> None:
        self.min = size
        self._server = server
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._busy: set[_Connection] = set()
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

    def put(self, connection: _Connection) -> None:
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

    def _serve(self, connection: _Connection) -> None:
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

    ConnectionClass = _Connection
    keep_alive_conn_limit = MAX_CONNECTIONS
    max_request_header_size = MAX_HEADER_BYTES
    max_request_body_size = 16 * _problems.MAX_BODY_BYTES  # the application refuses much earlier, and says so

    def __init__(
        self, address: tuple[str, int], app: Any, num_threads: int, on_error: Callable[[BaseException], None]
    ) -> None:
        super().__init__(address, app, server_name="monitor", request_queue_size=64, timeout=IDLE_SECONDS)
        self.shutdown_timeout = 1.0
        self.software = "monitor"
        self.on_error = on_error
        self.bind_error: OSError | None = None
        self.requests = _Workers(self, num_threads)

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

    def process_conn(self, connection: _Connection) -> None:
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
        _log.log(level if level >= logging.ERROR else logging.DEBUG, "%s", msg, exc_info=traceback)

    def forget_statistics(self) -> None:
        """Take this server out of the table that cheroot keeps in the logging module for good."""
        table = getattr(logging, "statistics", {})
        for key in [key for key, value in table.items() if value is self.stats]:
            del table[key]

    def _turn_away(self, connection: _Connection) -> None:
        if not isinstance(connection.socket, ssl.SSLSocket):
            body = _problems.document(503, "All connections are in use; try again in a moment.")
            with contextlib.suppress(OSError):
                connection.socket.settimeout(0)  # this is the accepting thread: it never waits for a client
                connection.socket.send(_raw_problem("503 Service Unavailable", body, "Retry-After: 1\r\n"))
        connection.close()


def _raw_problem(status: str, body: bytes, headers: str = "") -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {_problems.CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\n"
        f"{headers}Connection: close\r\nServer: monitor\r\n\r\n"
    )
    return head.encode("latin-1") + body
