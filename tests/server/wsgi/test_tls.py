"""TLS: with certificates made here, over the real server."""

from __future__ import annotations

import http.client
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from flask import Flask

from monitor.server import HttpServer
from monitor.server.wsgi._cheroot import NUM_THREADS
from tests.requirements import need
from tests.server.wire import CONTROL, raw


class Certificate(NamedTuple):
    cert: str
    key: str


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Certificate]:
    """Two self-signed certificates: the server's and a client's."""
    openssl = need("openssl")
    folder = tmp_path_factory.mktemp("tls")
    made = {}
    for name in ("server", "client"):
        made[name] = Certificate(str(folder / f"{name}.pem"), str(folder / f"{name}.key"))
        subprocess.run(
            [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
             "-keyout", made[name].key, "-out", made[name].cert],
            check=True, capture_output=True,
        )  # fmt: skip
    return made


@pytest.fixture
def tls_server(app: Flask, certificates: dict[str, Certificate]) -> Iterator[HttpServer]:
    heard: list[BaseException] = []
    server = certificates["server"]
    with HttpServer(app, port=0, certfile=server.cert, keyfile=server.key, on_error=heard.append) as http_server:
        yield http_server
    assert heard == []


def status_of(server: HttpServer, context: ssl.SSLContext, path: str = "/healthz") -> int:
    connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=60, context=context)
    try:
        connection.request("GET", path, headers=CONTROL)
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def test_it_speaks_tls(tls_server: HttpServer, certificates: dict[str, Certificate]) -> None:
    """A client that trusts the certificate is served, over a URL that says https."""
    assert tls_server.url == f"https://127.0.0.1:{tls_server.port}"
    context = ssl.create_default_context(cafile=certificates["server"].cert)
    assert status_of(tls_server, context) == 200
    assert status_of(tls_server, context, "/api/v1/run") == 200


def test_a_client_that_does_not_trust_hangs_up_quietly(
    tls_server: HttpServer, certificates: dict[str, Certificate], capfd: pytest.CaptureFixture[str]
) -> None:
    """A failed handshake costs nothing and prints nothing."""
    with pytest.raises(ssl.SSLCertVerificationError):
        status_of(tls_server, ssl.create_default_context())
    assert status_of(tls_server, ssl.create_default_context(cafile=certificates["server"].cert)) == 200
    assert capfd.readouterr() == ("", "")


def test_plain_http_on_the_tls_port_is_told_so(tls_server: HttpServer) -> None:
    """The most common mistake gets an answer that a person can read."""
    received = raw(tls_server, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 400 ")
    assert b"use https://" in received


def test_clients_that_never_shake_hands_hold_nobody_up(
    tls_server: HttpServer, certificates: dict[str, Certificate], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silent ones hold no thread; those that begin a handshake and stop hold one up to the deadline."""
    monkeypatch.setattr("monitor.server.wsgi._connection.HEAD_SECONDS", 0.5)
    with ExitStack() as stack:
        for index in range(4 * NUM_THREADS):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", tls_server.port)))
            if index % 4 == 0:
                sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00")
        assert status_of(tls_server, ssl.create_default_context(cafile=certificates["server"].cert)) == 200


def test_old_tls_is_refused(tls_server: HttpServer, certificates: dict[str, Certificate]) -> None:
    """TLS 1.2 is the least."""
    context = ssl.create_default_context(cafile=certificates["server"].cert)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert status_of(tls_server, context) == 200
    assert tls_server._server.ssl_adapter.context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_with_a_client_ca_a_certificate_is_needed(app: Flask, certificates: dict[str, Certificate]) -> None:
    """Without one the handshake fails, before any view; with one of the CA the client is served."""
    server, client = certificates["server"], certificates["client"]
    with HttpServer(app, port=0, certfile=server.cert, keyfile=server.key, client_cafile=client.cert) as http_server:
        context = ssl.create_default_context(cafile=server.cert)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            status_of(http_server, context)
        stranger = ssl.create_default_context(cafile=server.cert)
        stranger.load_cert_chain(server.cert, server.key)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            status_of(http_server, stranger)
        context.load_cert_chain(client.cert, client.key)
        assert status_of(http_server, context) == 200


def test_a_connection_open_at_the_end_is_cut(app: Flask, certificates: dict[str, Certificate]) -> None:
    """A kept TLS connection does not hold stop()."""
    server = certificates["server"]
    context = ssl.create_default_context(cafile=server.cert)
    with HttpServer(app, port=0, certfile=server.cert, keyfile=server.key) as http_server:
        connection = http.client.HTTPSConnection("127.0.0.1", http_server.port, timeout=60, context=context)
        connection.request("GET", "/healthz")
        connection.getresponse().read()
        http_server.stop()
        connection.close()


def test_tls_settings_that_cannot_be_are_refused(
    app: Flask, certificates: dict[str, Certificate], tmp_path: Path
) -> None:
    """Each names the file at fault; nothing is bound."""
    server, client = certificates["server"], certificates["client"]
    none = str(tmp_path / "none.pem")
    for settings, words in [
        ({"certfile": none, "keyfile": server.key}, f"certfile='{none}'"),
        ({"certfile": server.cert, "keyfile": client.key}, "cannot be used"),
        ({"certfile": server.cert, "keyfile": server.key, "client_cafile": none}, f"client_cafile='{none}'"),
        ({"keyfile": server.key}, "need a certfile"),
        ({"client_cafile": client.cert}, "need a certfile"),
    ]:
        with pytest.raises(ValueError, match=words.replace("\\", ".")):
            HttpServer(app, port=0, **settings)


def test_a_key_with_a_passphrase_is_refused_without_asking(
    app: Flask, certificates: dict[str, Certificate], tmp_path: Path
) -> None:
    """OpenSSL would ask on the terminal, and the training would wait for an answer."""
    openssl = need("openssl")
    server = certificates["server"]
    locked = str(tmp_path / "locked.key")
    subprocess.run(
        [openssl, "ec", "-in", server.key, "-aes256", "-passout", "pass:secret", "-out", locked],
        check=True,
        capture_output=True,
    )
    with pytest.raises(ValueError, match="without a passphrase"):
        HttpServer(app, port=0, certfile=server.cert, keyfile=locked)


def test_handshakes_that_stop_half_way_keep_no_thread(
    tls_server: HttpServer, certificates: dict[str, Certificate], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice as many of them as there are threads, and who shakes hands is served long before their deadline."""
    monkeypatch.setattr("monitor.server.wsgi._connection.HEAD_SECONDS", 600.0)
    context = ssl.create_default_context(cafile=certificates["server"].cert)
    with ExitStack() as stack:
        for _ in range(2 * NUM_THREADS):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", tls_server.port)))
            sock.sendall(b"\x16\x03\x01\x02\x00")
        assert status_of(tls_server, context) == 200
