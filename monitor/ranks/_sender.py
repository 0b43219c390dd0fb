"""Any other rank's end: sends its shares to rank 0's watcher."""

from __future__ import annotations

import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from monitor.ranks import _handshake as handshake
from monitor.ranks._share import Share, pack

CONNECT_SECONDS = 5.0
RETRY_SECONDS = 2.0
GRACE_SECONDS = 10.0
"""How long rank 0's watcher may be away: another one takes over where it was killed."""
MAX_KEPT = 16_384
"""Shares that wait for a connection."""
MAX_SENT = 4096
"""Shares that are sent once more where the connection was lost."""
MAX_ROWS = 8192
"""Shares in one frame."""


class _OverError(Exception):
    """Rank 0's run has ended in order."""


class ShareSender:
    """Send the shares of one rank on a thread of its own. Nothing here waits but :meth:`close`.

    Args:
        on_joined: called with the id of rank 0's run, once its watcher has proved to be the one; with an empty text
            once that is gone.
        on_error: takes the exception of a connection that cannot be made for GRACE_SECONDS, once for each address.
    """

    def __init__(self, on_joined: Callable[[str], None], on_error: Callable[[Exception], None]) -> None:
        self._on_joined, self._on_error = on_joined, on_error
        self._waiting: deque[Share] = deque(maxlen=MAX_KEPT)
        self._sent: deque[Share] = deque(maxlen=MAX_SENT)
        self._wake = threading.Event()
        self._is_closing, self._is_over = False, True
        self._deadline = 0.0
        self._where: tuple[str, int, bytes, str, int] | None = None
        self._failed_at: object = None
        self._away_since: float | None = None
        self._has_joined = False
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def put(self, share: Share) -> None:
        """Take a share; the oldest is dropped where too many wait."""
        self._waiting.append(share)

    def send(self) -> None:
        """Have sent what was taken."""
        self._wake.set()

    def join(self, host: str, port: int, secret: str, run_id: str, rank: int) -> None:
        """Send to rank 0's watcher from here on, as a rank.

        Raises:
            RuntimeError: the machine has no thread left.
        """
        self._where = host, port, secret.encode(), run_id, rank
        self._wake.set()
        with self._starting:  # a run that ends at this moment waits for the thread all the same
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="monitor-shares", daemon=True)
                thread.start()
                self._thread = thread

    def close(self, seconds: float, *, is_over: bool = True) -> None:
        """Send what is left and, unless another watcher of this rank takes over, that nothing follows; wait ``seconds``
        at most."""
        self._is_over = is_over
        self._deadline = time.monotonic() + seconds
        self._is_closing = True
        self._wake.set()
        with self._starting:
            thread = self._thread
        if thread is not None:
            thread.join(seconds)

    # ------------------------------------------------------------------------------------------- its own thread

    def _run(self) -> None:
        while not self._is_late():
            where = self._where
            assert where is not None
            try:
                with self._connected(*where) as connection:
                    self._on_joined(where[3])
                    self._has_joined, self._away_since = True, None
                    self._send_again(connection)
                    if self._send_to(connection, where):
                        return
            except _OverError:  # what follows is shown nowhere, and this rank still is part of that run
                return
            except Exception as error:  # noqa: BLE001 - the thread lives for as long as the run
                self._note(error, where)
                self._rest()

    def _leave(self) -> None:
        if self._has_joined:
            self._has_joined = False
            self._on_joined("")

    def _is_late(self) -> bool:
        return self._is_closing and time.monotonic() > self._deadline

    def _rest(self) -> None:
        end = time.monotonic() + RETRY_SECONDS
        while time.monotonic() < end and not self._is_late():
            time.sleep(0.1)

    def _note(self, error: Exception, where: tuple[str, int, bytes, str, int]) -> None:
        now = time.monotonic()
        self._away_since = now if self._away_since is None else self._away_since
        if now - self._away_since >= GRACE_SECONDS and self._failed_at != where and not self._is_closing:
            self._failed_at = where
            self._leave()
            self._on_error(ConnectionError(f"rank 0's watcher at {where[0]}:{where[1]} cannot be reached: {error}"))

    def _connected(self, host: str, port: int, secret: bytes, _: str, rank: int) -> socket.socket:
        """Return a connection at whose other end is a watcher that knows the secret."""
        connection = socket.create_connection((host, port), timeout=CONNECT_SECONDS)
        try:
            nonce = _exactly(connection, handshake.NONCE_BYTES)
            called = handshake.call(secret, rank, nonce, secrets.token_bytes(handshake.NONCE_BYTES))
            connection.sendall(called)
            if not handshake.is_answer(secret, called, _exactly(connection, 32)):
                raise ConnectionError("it does not know the run's secret")
        except BaseException:
            connection.close()
            raise
        return connection

    def _send_to(self, connection: socket.socket, where: object) -> bool:
        """Send until the end or another address; tell whether it was the end."""
        while self._where == where:
            self._wake.wait(1.0)
            self._wake.clear()
            is_last = self._is_closing
            self._send_waiting(connection)
            if is_last:
                connection.sendall(handshake.LENGTH.pack(0) if self._is_over else b"")
                return True
        return False

    def _send_again(self, connection: socket.socket) -> None:
        """Send what may have been lost with the last connection; what has come is left out there."""
        if self._sent:
            rows = pack(self._sent)
            connection.sendall(handshake.LENGTH.pack(len(rows)) + rows)

    def _send_waiting(self, connection: socket.socket) -> None:
        while shares := self._next():
            rows = pack(shares)
            self._sent.extend(shares)  # before it is sent: what is lost on the way is sent once more
            connection.sendall(handshake.LENGTH.pack(len(rows)) + rows)
        _check(connection)

    def _next(self) -> list[Share]:
        shares: list[Share] = []
        with suppress(IndexError):
            while len(shares) < MAX_ROWS:
                shares.append(self._waiting.popleft())
        return shares


def _exactly(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        part = connection.recv(size - len(found))
        if not part:
            raise ConnectionError("it has closed the connection")
        found += part
    return found


def _check(connection: socket.socket) -> None:
    """Raise OSError where the other end is gone, and _OverError where it has said that its run is over."""
    connection.setblocking(False)
    try:
        said = connection.recv(1)
        raise _OverError if said == handshake.OVER else ConnectionError("it has closed the connection")
    except BlockingIOError:
        pass
    finally:
        connection.settimeout(CONNECT_SECONDS)
