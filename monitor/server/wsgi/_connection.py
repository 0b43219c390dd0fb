"""A connection with a deadline: what one client may send, how long it may take, how it is refused."""

from __future__ import annotations

import _pyio  # type: ignore[import-not-found]  # what cheroot's own files are made of
import contextlib
import io
import logging
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any, TypeVar

from cheroot import errors
from cheroot.makefile import StreamReader, StreamWriter
from cheroot.server import HTTPConnection, HTTPRequest

from monitor.server.wsgi._parsing import Headers, StrictHeaderReader, check_chunk_size, check_request_line
from monitor.server.wsgi._problem import CONTENT_TYPE, document

_LOG = logging.getLogger("monitor")
_T = TypeVar("_T")
HEAD_SECONDS = 3.0  # for a handshake and a whole head, however slowly it trickles in
# While others wait for a thread, a stranger has this for each of head, body and answer: who has it all sends it then.
STRANGER_PATIENCE_SECONDS = 0.025
TLS_PATIENCE_SECONDS = 0.15  # over TLS, where a handshake goes to and fro
KNOWN_PATIENCE_SECONDS = 1.0  # for a single read or write then
BODY_SECONDS = 5.0  # for the body after the head
WRITE_SECONDS = 60.0  # for a whole answer
MAX_LINE_BYTES = 1024  # of the size of a chunk, with what it says of itself


class _TimedIO(socket.SocketIO):
    """A raw socket file whose reads and writes share the deadline of their connection."""

    def __init__(self, sock: socket.socket, mode: Any, connection: Connection) -> None:
        super().__init__(sock, mode)
        self._connection = connection

    def readinto(self, b: Any) -> int | None:
        return self._connection.wait_for(lambda sock: sock.recv_into(b))

    def write(self, b: Any) -> int | None:
        self._connection.begin_writing()
        return self._connection.wait_for(lambda sock: sock.send(b))


class _RequestReader(StreamReader):
    def __init__(self, raw: socket.SocketIO) -> None:
        _pyio.BufferedReader.__init__(self, raw, _pyio.DEFAULT_BUFFER_SIZE)
        self.bytes_read = 0

    def readline(self, size: int | None = -1) -> bytes:
        """Read a line. One for which no limit is given is the size of a chunk: it is bounded, where cheroot reads for
        ever, and checked."""
        if size is not None and size >= 0:
            return bytes(super().readline(size))
        line = bytes(super().readline(MAX_LINE_BYTES + 1))
        if len(line) > MAX_LINE_BYTES:
            raise errors.MaxSizeExceeded
        check_chunk_size(line)
        return line


class _ResponseWriter(StreamWriter):
    _write_buf: bytearray

    def __init__(self, raw: socket.SocketIO) -> None:
        _pyio.BufferedWriter.__init__(self, raw, _pyio.DEFAULT_BUFFER_SIZE)
        self.bytes_written = 0

    def discard(self) -> None:
        """Forget what has not been sent."""
        del self._write_buf[:]


class _Request(HTTPRequest):
    """A request whose protocol errors are problems too."""

    header_reader = StrictHeaderReader()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.inheaders = Headers()

    def read_request_line(self) -> bool:
        reader = self.rfile
        line = reader.readline()
        if line == b"\r\n":  # one empty line before a request is passed over (RFC 9112, 2.2)
            line = reader.readline()
        try:
            check_request_line(line)
            self.rfile = io.BytesIO(line)
            return bool(super().read_request_line())  # type: ignore[no-untyped-call]
        except ValueError:  # also an authority that is none, such as //[
            self.simple_response("400 Bad Request", "The request line is malformed.")
            return False
        finally:
            self.rfile = reader

    def read_request_headers(self) -> bool:
        if not super().read_request_headers():  # type: ignore[no-untyped-call]
            return False
        length = self.inheaders.get(b"Content-Length", b"0")
        if self.chunked_read and b"Content-Length" in self.inheaders:  # the seed of request smuggling
            self.simple_response("400 Bad Request", "Content-Length and Transfer-Encoding exclude each other.")
            return False
        if b"Transfer-Encoding" in self.inheaders and not self.chunked_read:  # HTTP/1.0 knows no chunks
            self.simple_response("400 Bad Request", "Transfer-Encoding needs HTTP/1.1.")
            return False
        if not length.isdigit():
            self.simple_response("400 Bad Request", "Content-Length must be a number of bytes.")
            return False
        return True

    def simple_response(self, status: str, msg: str = "") -> None:
        self.close_connection = True
        body = document(int(str(status)[:3]), msg or str(status)[4:])
        self.conn.wfile.write(raw_problem(str(status), body))

    def send_headers(self) -> None:
        # Nothing after a body in chunks is trusted to be the next request: it may be unread, or end elsewhere.
        if self.chunked_read or not self._is_body_read():
            self.close_connection = True
        super().send_headers()

    def _is_body_read(self) -> bool:
        """Read what the application has left of the body; one that does not come in time costs the connection alone,
        not the answer."""
        left = 0 if self.close_connection or int(self.status[:3]) == 413 else getattr(self.rfile, "remaining", 0)
        try:
            return not left or len(self.rfile.read(left)) == left
        except OSError:
            return False

    def respond(self) -> None:
        self.conn.begin_body()
        self.conn.is_responding = True
        try:
            super().respond()
        finally:
            self.conn.is_responding = False
            self.server.open_connections.put(self.conn)


class Connection(HTTPConnection):
    """A connection with a deadline for the request at hand. It is known once a request of it was authenticated."""

    RequestHandlerClass = _Request

    def __init__(self, server: Any, sock: socket.socket, makefile: Any = None) -> None:  # noqa: ARG002 - cheroot gives one
        super().__init__(server, sock)
        self.rfile = _RequestReader(_TimedIO(sock, "rb", self))
        self.wfile = _ResponseWriter(_TimedIO(sock, "wb", self))
        self.is_new = True
        self.is_known = False
        self.is_late = False
        self.is_aborted = False
        self.is_responding = False
        self.queued = 0.0
        self._patience = TLS_PATIENCE_SECONDS if isinstance(sock, ssl.SSLSocket) else STRANGER_PATIENCE_SECONDS
        self._is_secured = False
        self._is_writing = False
        self._begun, self._deadline = 0.0, float("inf")

    def communicate(self) -> bool:
        self._begin(HEAD_SECONDS)
        if isinstance(self.socket, ssl.SSLSocket) and not self._is_secured and not self._shake_hands():
            return False
        self._is_secured = True
        return bool(super().communicate())  # type: ignore[no-untyped-call]

    def wait_for(self, act: Callable[[socket.socket], _T]) -> _T:
        """Call a socket until it has done its part, the time is over, or others wait for the thread.

        Raises:
            TimeoutError: with the words by which cheroot knows to answer 408.
        """
        called = time.monotonic()
        until = min(self._deadline, called + self.server.timeout)
        since, patience = (called, KNOWN_PATIENCE_SECONDS) if self.is_known else (self._begun, self._patience)
        while (now := time.monotonic()) < until:
            if now - since > patience and self.server.requests.is_crowded:
                break
            self.socket.settimeout(min(until - now, patience))
            try:
                return act(self.socket)
            except TimeoutError:
                continue
        raise TimeoutError("timed out")

    def begin_body(self) -> None:
        """Give the body its own deadline once the head is read; a "100 Continue" in between was no answer yet."""
        self._begin(BODY_SECONDS)

    def begin_writing(self) -> None:
        """Give the answer its own deadline at its first byte."""
        if not self._is_writing:
            self._begin(WRITE_SECONDS)
            self._is_writing = True

    def _begin(self, seconds: float) -> None:
        self._begun, self._is_writing = time.monotonic(), False
        self._deadline = self._begun + seconds

    def vouch(self) -> None:
        """Note that a request was authenticated."""
        self.is_known = True

    def abort(self) -> None:
        """Wake whoever waits on this connection, from another thread."""
        self.is_aborted = True
        with contextlib.suppress(OSError):
            # Not SSLSocket's own, which drops the TLS state while the worker uses it.
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket at once; what could not be sent is dropped, where a finalizer would complain of it."""
        self.server.open_connections.discard(self)
        with contextlib.suppress(OSError, errors.FatalSSLAlert):
            super().close()
        self.wfile.discard()
        with contextlib.suppress(OSError):
            self.wfile.close()

    def _shake_hands(self) -> bool:
        try:
            self.wait_for(lambda sock: sock.do_handshake())  # type: ignore[attr-defined]
        except ssl.SSLError as error:
            _LOG.debug("TLS handshake with %s failed: %s", self.remote_addr, error)
            if error.reason == "HTTP_REQUEST":
                body = document(400, "This port speaks HTTPS only; use https:// in the URL.")
                with contextlib.suppress(OSError):
                    socket.socket.send(self.socket, raw_problem("400 Bad Request", body))
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


def raw_problem(status: str, body: bytes, headers: str = "") -> bytes:
    """Return a whole HTTP answer, for where no application is at hand."""
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\n"
        f"{headers}Connection: close\r\nServer: monitor\r\n\r\n"
    )
    return head.encode("latin-1") + body
