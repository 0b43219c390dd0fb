"""Small words for speaking HTTP to a real server."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any, NamedTuple

from monitor.server import HttpServer
from monitor.server._app import OPENAPI_FILE
from tests.server.fake_run import READ_TOKEN, TOKEN

CONTROL = {"Authorization": f"Bearer {TOKEN}"}
READ = {"Authorization": f"Bearer {READ_TOKEN}"}
JSON = {"Content-Type": "application/json"}
OPENAPI = json.loads(OPENAPI_FILE.read_text(encoding="utf-8"))
"""The description of the API that the server serves."""


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body, parse_constant=lambda name: pytest_fail(name))


def pytest_fail(name: str) -> None:
    raise AssertionError(f"a bare {name} is not JSON")


def call(
    server: HttpServer,
    method: str,
    path: str,
    headers: dict[str, str] | None = None,
    body: bytes | str | None = None,
) -> Answer:
    """Make one request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


def send(server: HttpServer, path: str, body: Any, headers: dict[str, str] = CONTROL, method: str = "POST") -> Answer:
    """Send a command; a str or bytes body goes as it is, anything else as JSON."""
    raw = body if isinstance(body, (str, bytes)) else json.dumps(body)
    return call(server, method, f"/api/v1{path}", {**JSON, **headers}, raw)


def raw(server: HttpServer, data: bytes, timeout: float = 10) -> bytes:
    """Send bytes as they are and return all that comes until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=timeout) as sock:
        sock.sendall(data)
        received = b""
        while chunk := sock.recv(65536):
            received += chunk
        return received
