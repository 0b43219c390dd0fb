"""Serve at a port: bound in the caller's thread, with TLS or without."""

from __future__ import annotations

import errno
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Any

from monitor.server.wsgi._addresses import is_loopback
from monitor.server.wsgi._cheroot import NUM_THREADS, CheroServer
from monitor.server.wsgi._connection import TlsAdapter
from monitor.server.wsgi._serving import Serving

FIRST_PORT = 9477
LAST_PORT = 9577
_LOG = logging.getLogger("monitor")


class HttpServer(Serving):
    """Serve a WSGI application from daemon threads.

    The socket is bound by the constructor, in the caller's thread; ``start()`` begins to answer. ``port=None``
    takes 9477 or the next free one up to 9577, else any; 0 takes any. With ``certfile`` (and ``keyfile``, unless
    the key is in the same file) it speaks TLS 1.2 or later; with ``client_cafile`` a client needs a certificate
    of that CA. ``on_error`` hears of failures inside the server; nothing is ever printed.

    Example:
        with HttpServer(app, port=0) as server:
            print(server.url)

    Raises:
        OSError: the port is busy or not allowed, or the host is not one of this machine.
        ValueError: a certificate that cannot be loaded, or TLS settings that do not go together.
    """

    def __init__(
        self,
        app: Any,
        host: str = "127.0.0.1",
        port: int | None = None,
        *,
        certfile: str | None = None,
        keyfile: str | None = None,
        client_cafile: str | None = None,
        on_error: Callable[[BaseException], None] = lambda _: None,
        num_threads: int = NUM_THREADS,
    ) -> None:
        context = tls_context(certfile, keyfile, client_cafile)
        self._host = host.strip("[]")
        self._scheme = "http" if context is None else "https"
        server = _bound(self._host, port, lambda address: _prepared(address, app, num_threads, on_error, context))
        self.port: int = server.bind_addr[1]
        self._bound_host = str(server.bind_addr[0])
        super().__init__(server, on_error, lambda: _knock(server))
        if context is None and not is_loopback(self._host):
            _LOG.warning("Serving on %s without TLS: the token travels in clear. Give certfile and keyfile.", self.url)

    @property
    def url(self) -> str:
        """The address for a browser: ``http://127.0.0.1:9477``; a wildcard host is shown as this machine."""
        bound = self._bound_host  # of the addresses of "localhost" another program may have the first
        host = bound if is_loopback(bound) else {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host)
        return f"{self._scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"


def tls_context(certfile: str | None, keyfile: str | None, client_cafile: str | None) -> ssl.SSLContext | None:
    """Return the server side of TLS 1.2 or later, or None without a certificate.

    Raises ValueError naming the file at fault.
    """
    if certfile is None:
        if keyfile or client_cafile:
            raise ValueError("keyfile and client_cafile need a certfile; give the server's certificate too")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certfile, keyfile, password=_refuse_password)
    except (OSError, ValueError) as error:
        raise ValueError(f"certfile={certfile!r} and keyfile={keyfile!r} cannot be used: {error}") from error
    if client_cafile is not None:
        try:
            context.load_verify_locations(client_cafile)
        except OSError as error:
            raise ValueError(f"client_cafile={client_cafile!r} cannot be used: {error}") from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _refuse_password() -> str:
    # Without this, OpenSSL asks on the terminal, and the training script waits for an answer.
    raise ValueError("the key is encrypted; give one without a passphrase")


def _bound(host: str, port: int | None, prepare: Callable[[tuple[str, int]], CheroServer]) -> CheroServer:
    socket.getaddrinfo(host, 0)  # a name that does not resolve is reported once, not for a hundred ports
    if port is not None:
        return prepare((host, port))
    for candidate in range(FIRST_PORT, LAST_PORT + 1):
        try:
            return prepare((host, candidate))
        except OSError as error:  # noqa: PERF203 - a hundred tries at most
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
    return prepare((host, 0))


def _prepared(
    address: tuple[str, int],
    app: Any,
    num_threads: int,
    on_error: Callable[[BaseException], None],
    context: ssl.SSLContext | None,
) -> CheroServer:
    server = CheroServer(address, app, num_threads, on_error)
    server.ssl_adapter = None if context is None else TlsAdapter(context)
    try:
        server.prepare()
    except OSError as error:
        server.forget_statistics()
        raise _explained(address, server.bind_error or error) from error
    return server


def _explained(address: tuple[str, int], error: OSError) -> OSError:
    host, port = address
    cure = {
        errno.EADDRINUSE: "it is in use; give another port, or port=None for the next free one",
        errno.EACCES: "that is not allowed; give a port from 1024 up",
        errno.EADDRNOTAVAIL: "the host is no address of this machine; give one that is, or 127.0.0.1",
    }.get(error.errno or 0, error.strerror or str(error))
    return OSError(error.errno, f"cannot listen on {host} port {port}: {cure}")


def _knock(server: CheroServer) -> None:
    listening = server.socket
    if listening is None:
        return
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    with socket.create_connection((host, port), timeout=0.2):
        pass
