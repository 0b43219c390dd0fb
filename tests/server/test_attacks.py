"""Requests that no honest client sends, over the real server: each gets a refusal, none a 500 or a thread."""

from __future__ import annotations

import json
import re
import socket

import pytest

from monitor.server import HttpServer
from tests.server.fake_run import TOKEN, FakeRun
from tests.server.wire import CONTROL, JSON, call, raw, send

HOST = b"Host: localhost\r\n"
AUTH = b"Authorization: Bearer " + TOKEN.encode() + b"\r\n"


def statuses(received: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]


def problem_of(received: bytes) -> dict[str, object]:
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    return json.loads(body)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 505),
        (b"get / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET / HTTP/1.1\n\n", 400),
        (b"\0 / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b" GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET  /healthz HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET /healthz\xff HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET /health\tz HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET /healthz HTTP/+1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET /healthz HTTP/1.1 \r\n" + HOST + b"\r\n", 400),
        (b"GET http://evil.example/ HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET //evil.example/%2e%2e HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"CONNECT evil.example:443 HTTP/1.1\r\n" + HOST + b"\r\n", 405),
        (b"TRACE / HTTP/1.1\r\nConnection: close\r\n" + HOST + b"\r\n", 405),
        (b"OPTIONS * HTTP/1.1\r\nConnection: close\r\n" + HOST + b"\r\n", 404),
        (b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n", 421),
        (b"GET /healthz HTTP/1.0\r\n\r\n", 421),
        (b"GET /healthz HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n", 421),
        (b"GET /healthz HTTP/1.1\r\n" + HOST + b"Host: evil.example\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: evil.example\r\n" + HOST + b"\r\n", 400),
        (b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414),
        (b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 40_000 + b"\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\n" + HOST + b"X: y\r\n" * 10_000 + b"\r\n", 413),
        (b"GET /metrics HTTP/1.1\r\n" + HOST + AUTH + AUTH + b"\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon here\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost : 127.0.0.1\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\n" + HOST + b"X\t: y\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\n" + HOST + b": y\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\n" + HOST + b"X(y): z\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\n" + HOST + b"X: y\r\n folded\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\n folded: first\r\n" + HOST + b"\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\n" + HOST + b"X: y\nZ: w\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\n" + HOST + b"X: y\rZ: w\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\n" + HOST + b"X: \0\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\n" + HOST + b"\n", 400),
        (b"GET /healthz HTTP/1.1\n" + HOST + b"\r\n", 400),
        (b"POST /api/v1/pause HTTP/1.1\r\n" + HOST + AUTH + b"Content-Length: -1\r\n\r\n", 400),
        (b"POST /api/v1/pause HTTP/1.1\r\n" + HOST + AUTH + b"Content-Length: +5\r\n\r\nhello", 400),
        (b"POST /api/v1/pause HTTP/1.1\r\n" + HOST + AUTH + b"Content-Length: 1_0\r\n\r\n", 400),
        (b"POST /api/v1/pause HTTP/1.1\r\n" + HOST + AUTH + b"Content-Length: 9999999999\r\n\r\n", 413),
        (
            b"POST /api/v1/pause HTTP/1.1\r\n" + HOST + AUTH
            + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", 400,
        ),
        (
            b"POST /api/v1/pause HTTP/1.1\r\n" + HOST + AUTH
            + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400,
        ),
        (b"POST /api/v1/pause HTTP/1.1\r\n" + HOST + AUTH + b"Transfer-Encoding: gzip\r\n\r\n", 501),
    ],
)  # fmt: skip
def test_what_breaks_the_protocol_is_refused(
    server: HttpServer, run: FakeRun, request_bytes: bytes, status: int
) -> None:
    """Always a problem document, always exactly one answer, and nothing is queued."""
    received = raw(server, request_bytes)
    assert statuses(received) == [status]
    assert problem_of(received)["status"] == status
    assert b"Cheroot" not in received
    assert not run.commands()


CHUNKED = (
    b"POST /api/v1/lr/reduce HTTP/1.1\r\n"
    + HOST
    + AUTH
    + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def test_a_chunked_body_is_read(server: HttpServer, run: FakeRun) -> None:
    """curl sends one for a body of unknown length."""
    received = raw(
        server, CHUNKED + b"Connection: close\r\n\r\n" + chunk(b'{"fac') + chunk(b'tor": 0.5}') + b"0\r\n\r\n"
    )
    assert statuses(received) == [202]
    assert run.commands()[0].factor == 0.5


@pytest.mark.parametrize("size", [70_000, 3_000_000])
def test_a_chunked_body_over_the_limit_is_refused(server: HttpServer, run: FakeRun, size: int) -> None:
    """Without a Content-Length the limit holds as well; the client reads the refusal, however much it sent."""
    body = chunk(b" " * 10_000) * (size // 10_000) + b"0\r\n\r\n"
    try:
        received = raw(server, CHUNKED + b"\r\n" + body)
    except ConnectionError:
        assert size > 1_000_000  # so much that the server hung up on it
    else:
        assert statuses(received) == [413]
        assert problem_of(received)["status"] == 413
    assert not run.commands()
    assert call(server, "GET", "/healthz").status == 200


@pytest.mark.parametrize("body", [b"zz\r\n\r\n", b"-5\r\n\r\n", b"5\r\nabc", b"ffffffffffffffff\r\n"])
def test_broken_chunks_are_refused(server: HttpServer, run: FakeRun, body: bytes) -> None:
    """A chunk that is none costs its connection and nothing else."""
    with_end = raw_half_closed(server, CHUNKED + b"\r\n" + body)
    assert all(status in (400, 408, 413) for status in statuses(with_end))
    assert not run.commands()
    assert call(server, "GET", "/healthz").status == 200


@pytest.mark.parametrize(
    "size", [b"0xf\r\n", b"+f\r\n", b"0_f\r\n", b" f\r\n", b"f\n", b"f;a=b\n", b"\x0bf\r\n", b"f a\r\n", b"\r\n"]
)
def test_a_chunk_size_is_hexadecimal_digits_alone(server: HttpServer, run: FakeRun, size: bytes) -> None:
    """What Python takes for a number, and another parser may not, is refused; so is a line that ends in LF alone."""
    body = size + b'{"factor": 0.5}\r\n0\r\n\r\n'
    assert statuses(raw_half_closed(server, CHUNKED + b"\r\n" + body)) == [400]
    assert not run.commands()


def test_what_a_chunk_may_say_of_itself_is_passed_over(server: HttpServer, run: FakeRun) -> None:
    """Either case of the digits, leading noughts, extensions and trailers are HTTP."""
    body = b'00F ; a="b"\r\n{"factor": 0.5}\r\n0\r\nX: y\r\n\r\n'
    assert statuses(raw_half_closed(server, CHUNKED + b"\r\n" + body)) == [202]
    assert run.commands()[0].factor == 0.5


def raw_half_closed(server: HttpServer, data: bytes) -> bytes:
    """Send bytes, say that no more will come, and read the answer."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        received = b""
        try:
            while part := sock.recv(65536):
                received += part
        except ConnectionError:
            pass
        return received


def test_a_body_cut_short_changes_nothing(server: HttpServer, run: FakeRun) -> None:
    """Half of a JSON body, and the client is gone."""
    start = b"POST /api/v1/lr/reduce HTTP/1.1\r\n" + HOST + AUTH + b"Content-Type: application/json\r\n"
    received = raw_half_closed(server, start + b'Content-Length: 500\r\n\r\n{"factor": 0.5}')
    assert 202 not in statuses(received)
    assert not run.commands()


@pytest.mark.parametrize("size", [65_537, 100_000, 900_000, 5_000_000])
def test_a_large_body_is_refused_so_that_the_client_reads_why(server: HttpServer, run: FakeRun, size: int) -> None:
    """413 with the limit; past a megabyte the server may hang up instead."""
    try:
        answer = send(server, "/lr/reduce", b" " * size)
    except ConnectionError:
        assert size > 1_000_000
    else:
        assert answer.status == 413
        assert answer.json["status"] == 413
    assert not run.commands()


def test_a_body_of_exactly_the_limit_is_read(server: HttpServer) -> None:
    """65,536 bytes are allowed."""
    body = b'{"factor": 0.5}'.ljust(65_536)
    assert send(server, "/lr/reduce", body).status == 202


def test_a_refused_body_is_not_taken_for_the_next_request(server: HttpServer, run: FakeRun) -> None:
    """A request hidden in the body of a refused one is never executed."""
    hidden = b"POST /api/v1/stop HTTP/1.1\r\n" + HOST + AUTH + b"\r\n"
    outer = b"POST /api/v1/pause HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % len(hidden)
    last = b"GET /healthz HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
    assert statuses(raw(server, outer + hidden + last)) == [401, 200]
    chunked = b"POST /api/v1/pause HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
    assert statuses(raw(server, chunked + hidden)) == [401]
    assert not run.commands()


def test_headers_with_underscores_are_not_ours(server: HttpServer, run: FakeRun) -> None:
    """X_CSRF_Token and Content_Type look like ours in WSGI's environment; they are dropped."""
    request_bytes = (
        b"POST /api/v1/lr/reduce HTTP/1.1\r\n" + HOST + AUTH
        + b"Content_Type: application/json\r\nConnection: close\r\nContent-Length: 15\r\n\r\n" + b'{"factor": 0.5}'
    )  # fmt: skip
    assert statuses(raw(server, request_bytes)) == [415]
    assert not run.commands()


@pytest.mark.parametrize(
    "path",
    [
        "/nothing%0d%0aSet-Cookie:%20a=b",
        "/api/v1/commands/x%0d%0aSet-Cookie:%20a=b",
        "/?token=x%0d%0aSet-Cookie:%20a=b",
        "/static/%0d%0aSet-Cookie:%20a=b",
        "/metrics?name[]=%0d%0aSet-Cookie:%20a=b",
    ],
)
def test_no_header_can_be_injected(server: HttpServer, path: str) -> None:
    """Line breaks in a path or a query reach no header."""
    answer = call(server, "GET", path, CONTROL)
    assert "Set-Cookie" not in answer.headers
    assert answer.status in (200, 401, 404)


def test_a_line_break_in_a_header_value_is_the_end_of_it(server: HttpServer) -> None:
    """An idempotency key comes back in no header."""
    key = {"Idempotency-Key": "k\x0b1"}
    assert send(server, "/lr/restore", {}, {**CONTROL, **key}).status == 400


def test_head_has_the_headers_of_get_and_no_body(server: HttpServer) -> None:
    """For every reading path, without counting as a scrape."""
    for path in ("/healthz", "/metrics", "/api/v1/run", "/api/v1/openapi.json"):
        answer = call(server, "HEAD", path, CONTROL)
        assert (answer.status, answer.body) == (200, b"")
        assert int(answer.headers["Content-Length"]) > 0


@pytest.mark.parametrize("method", ["DELETE", "PATCH", "OPTIONS", "PUT", "FOO"])
def test_other_methods_are_not_allowed(server: HttpServer, method: str) -> None:
    """405 with Allow, as a problem, with a body sent along or not."""
    answer = call(server, method, "/api/v1/lr/reduce", {**CONTROL, **JSON}, b'{"factor": 0.5}')
    assert answer.status == 405
    assert answer.headers["Allow"] == "POST"
    assert answer.json["title"] == "Method Not Allowed"


@pytest.mark.parametrize(
    "path",
    ["/%", "/%zz", "/%00", "/%ff%fe", "/api/v1/commands/%00", "/api/v1/commands/" + "x" * 20_000, "/;a=b", "/?%"],
)
def test_odd_paths_are_not_found(server: HttpServer, path: str) -> None:
    """Broken escapes, NUL bytes and bytes that are no UTF-8: no 500."""
    assert call(server, "GET", path, CONTROL).status in (200, 400, 404)


@pytest.mark.parametrize(
    "path", ["/static/../__init__.py", "/static/%2e%2e/_auth.py", "/static/..%2f_auth.py", "/../../etc/passwd"]
)
def test_no_path_climbs(server: HttpServer, path: str) -> None:
    """Raw dots over the wire as well."""
    received = raw(server, b"GET " + path.encode() + b" HTTP/1.1\r\nConnection: close\r\n" + HOST + AUTH + b"\r\n")
    assert statuses(received) == [404]
    assert b"import" not in received


def test_expect_continue_is_honoured(server: HttpServer) -> None:
    """curl asks before it sends a larger body."""
    body = b'{"factor": 0.5}'
    head = (
        b"POST /api/v1/lr/reduce HTTP/1.1\r\n"
        + HOST
        + AUTH
        + b"Content-Type: application/json\r\nConnection: close\r\n"
    )
    received = raw(server, head + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    assert statuses(received) == [100, 202]


def test_a_chunk_size_without_end_is_cut_short(server: HttpServer, run: FakeRun) -> None:
    """A chunk's size that is running for megabytes is refused after a kilobyte, before any credential is looked at."""
    head = b"POST /login HTTP/1.1\r\n" + HOST + b"Content-Type: application/x-www-form-urlencoded\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as sock:
        sock.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n" + b"0" * 4096)
        answer = sock.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("line", [b"GET //[ HTTP/1.1", b"GET http://[::1 HTTP/1.1", b"GET //[::g]/ HTTP/1.1"])
def test_an_address_that_is_none_is_a_bad_request(server: HttpServer, line: bytes) -> None:
    """A malformed authority in the request line is the client's mistake, no failure of ours."""
    assert raw(server, line + b"\r\n" + HOST + b"\r\n").startswith(b"HTTP/1.1 400 ")


def test_chunks_need_http_1_1(server: HttpServer, run: FakeRun) -> None:
    """An HTTP/1.0 request that says it is chunked is refused: its body would be read as the next request."""
    inner = b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n"
    head = b"POST /api/v1/pause HTTP/1.0\r\n" + HOST + b"Connection: Keep-Alive\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = raw(server, head + inner)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1
