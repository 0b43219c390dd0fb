"""Whatever is asked of the HTTP server, bytes or whole requests, it answers, fails at nothing, and changes nothing for
who may not."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from cheroot.errors import MaxSizeExceeded
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st

from monitor.server import HttpServer, Security, create_app
from tests.fuzz.effort import ANYTHING, damaged, tried
from tests.requirements import need_module
from tests.server.fake_run import READ_TOKEN, TOKEN, FakeRun
from tests.server.test_alertmanager import alert, notification
from tests.server.wire import CONTROL, JSON, OPENAPI, READ

METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "get", "FOO", ""]
PATHS = [*OPENAPI["paths"], "/static/page.js", "/static/../x", "//", "/%", "/%00", "/?", "*", "http://a/", "/nothing"]
QUERIES = [
    "",
    "since=0",
    "since=-1",
    "points=10",
    "points=1e9",
    "limit=",
    "before=%00",
    "name[]=x",
    "token=" + TOKEN,
    "%",
]
TEXT = st.text(max_size=12) | st.sampled_from(["localhost", "127.0.0.1", "::1", "a" * 300, TOKEN, "\x1b[2J", "\u202e"])
HEADERS = st.dictionaries(
    st.sampled_from(
        ["Host", "Origin", "Cookie", "Accept", "Accept-Encoding", "X-CSRF-Token", "Idempotency-Key", "Monitor-Actor",
         "Content-Type", "Sec-Fetch-Site", "X-Forwarded-For", "Range", "If-None-Match", "If-Modified-Since", "Expect"]
    ),
    TEXT.map(lambda text: text.encode("latin-1", "ignore").decode("latin-1").translate({10: None, 13: None, 0: None})),
    max_size=4,
)  # fmt: skip
STATUSES = {200, 202, 204, 206, 302, 303, 304, 400, 401, 403, 404, 405, 409, 413, 415, 416, 417, 421, 422, 429, 503}


def asked(method: str, path: str, query: str, headers: dict[str, str], body: bytes) -> tuple[FakeRun, Any]:
    """Ask a fake run, past the socket, and see that nothing failed."""
    run, errors = FakeRun(), list[BaseException]()
    run.advance(20)
    app = create_app(run, Security(token=TOKEN, read_token=READ_TOKEN), on_error=errors.append)
    client: FlaskClient = app.test_client()
    bare = "/" + path.partition("?")[0].lstrip("/")  # a client would take //x for a host
    answer = client.open(path=bare, method=method, query_string=query, headers=headers, data=body, buffered=True)
    answer.close()
    assert errors == []
    return run, answer


@tried(120)
@given(
    st.sampled_from(METHODS[:8]),
    st.sampled_from([path for path in PATHS if path.startswith("/")])
    | st.text(max_size=30).map(lambda text: f"/{text}"),
    st.sampled_from(QUERIES) | st.text(max_size=30),
    HEADERS,
    st.binary(max_size=100) | ANYTHING.map(json.dumps).map(str.encode),
    st.sampled_from([{}, READ, CONTROL, {"Authorization": "Bearer x"}, {"Authorization": "\xff"}]),
)
def test_any_request_has_an_answer_that_is_known(
    method: str, path: str, query: str, headers: dict[str, str], body: bytes, token: dict[str, str]
) -> None:
    """No 5xx but 503; a problem has a document; a change needs the control token."""
    run, answer = asked(method, path, query, {**headers, **token}, body)
    assert answer.status_code in STATUSES, (answer.status_code, answer.data)
    assert token is CONTROL or not run.commands()
    if answer.status_code >= 400 and answer.data and method != "HEAD":
        assert answer.content_type == "application/problem+json"
        assert answer.json["status"] == answer.status_code


LABELS = st.dictionaries(
    st.sampled_from(["run_id", "remediation", "factor", "alertname", "severity", "groups"]) | st.text(max_size=5),
    TEXT
    | st.sampled_from(["reduce", "pause", "stop", "checkpoint", "0.5", "1e-400", "nan", "-1", "0x1", "restore"])
    | ANYTHING,
    max_size=4,
)
ALERTS = st.lists(st.builds(lambda labels, more: alert(**{**more, "labels": labels}), LABELS, st.dictionaries(
    st.sampled_from(["status", "startsAt", "endsAt", "fingerprint"]), ANYTHING, max_size=2)), max_size=5)  # fmt: skip
NOTIFICATION = st.builds(
    lambda alerts, more: {**notification(*alerts), **more},
    ALERTS,
    st.dictionaries(
        st.sampled_from(["version", "alerts", "status", "groupKey", "truncatedAlerts"]), ANYTHING, max_size=1
    ),
)
WHOLE = json.dumps(notification(alert(), alert("TrainingSpike"))).encode()


@tried(150)
@given(
    NOTIFICATION.map(json.dumps).map(str.encode) | damaged(WHOLE) | ANYTHING.map(json.dumps).map(str.encode),
    st.sampled_from([READ, CONTROL]),
)
def test_any_notification_has_an_answer(body: bytes, token: dict[str, str]) -> None:
    """It is taken, or refused with a document; nothing is commanded but what an alert may ask for."""
    run, answer = asked("POST", "/api/v1/alertmanager", "", {**token, **JSON}, body)
    assert answer.status_code in {200, 400, 401, 403, 413, 415, 422, 503}, answer.data
    assert isinstance(answer.json, dict)
    assert {record.action for record in run.commands()} <= {"reduce", "pause", "stop", "checkpoint"}
    assert token is CONTROL or not run.commands()


# ------------------------------------------------------------------------------------------------------ raw bytes


Seen = tuple[str, str, bytes]
"""Method, address and body of a request."""


class Echo:
    """A WSGI application that notes each request that reached it, as the server has read it, up to the first one that
    names no host: ours refuses it, and so does any other parser."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.is_over = False

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        try:
            body = environ["wsgi.input"].read()
        except (ValueError, OSError, MaxSizeExceeded):  # the body is none, as the application of a run finds out too
            start_response("400 Bad Request", [("Content-Length", "0")])
            return []
        self.is_over |= "HTTP_HOST" not in environ
        if not self.is_over:
            self.seen.append((environ["REQUEST_METHOD"], environ["REQUEST_URI"], body))
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
        return [b"ok"]


class Wire:
    def __init__(self) -> None:
        self.echo, self.errors = Echo(), list[BaseException]()
        self.server = HttpServer(self.echo, port=0, on_error=self.errors.append)

    def say(self, data: bytes) -> bytes:
        """Send bytes, say that no more come, and return all that comes back."""
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=60) as connection:
            received = b""
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                while part := connection.recv(65536):
                    received += part
            except ConnectionError:
                pass
            return received


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    with wire.server:
        yield wire
    assert wire.errors == []


END = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b"\r\n\r\n", b"\r\r\n", b""])
LINE = st.builds(
    lambda *parts: b"".join(parts),
    st.sampled_from([b"GET", b"POST", b"PUT", b"get", b"", b"G\0T", b"PRI"]),
    st.sampled_from([b" "] * 8 + [b"  ", b"\t", b""]),
    st.sampled_from([b"/", b"/a?b", b"*", b"//[", b"http://x/", b"/\xff", b"/%zz", b"/#a", b"/ a", b"a:1"]),
    st.sampled_from([b" "] * 8 + [b"  ", b"\t"]),
    st.sampled_from([b"HTTP/1.1"] * 8 + [b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.10", b"http/1.1", b"HTTP/ 1.1", b""]),
    END,
)
FIELD = st.builds(
    lambda name, colon, value, end: name + colon + value + end,
    st.sampled_from(
        [b"Content-Length", b"Transfer-Encoding", b"Host", b"X", b"Expect", b"Connection", b"Content_Length", b" X"]
    ),
    st.sampled_from([b": "] * 8 + [b":", b" :", b"\t: ", b" ", b":\x0b", b":\0"]),
    st.sampled_from(
        [b"0", b"5", b"5, 5", b"+5", b"5\x00", b"0x5", b"-1", b"9" * 30, b"chunked", b"Chunked", b"gzip, chunked",
         b"chunked, chunked", b"\x0bchunked", b"identity", b"localhost", b"close", b"keep-alive", b"100-continue", b""]
    ),
    END,
)  # fmt: skip
BODY = st.lists(
    st.sampled_from(
        [b"hello", b"5\r\nhello\r\n", b"5;a=b\r\nhello\r\n", b"0x5\r\nhello\r\n", b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n",
         b"5\nhello\n", b"-1\r\n", b"fffffffffffffffff\r\n", b"0\r\n", b"\r\n", b"5 \r\nhello\r\n", b"5\r\nhelloX\r\n"]
    ),
    max_size=3,
).map(b"".join)  # fmt: skip
REQUEST = st.builds(
    lambda line, fields, end, body: line + b"".join(fields) + end + body, LINE, st.lists(FIELD, max_size=4), END, BODY
)
GOOD = b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello"
CHUNKS = b"POST /y HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
STREAM = st.lists(REQUEST | st.just(GOOD), min_size=1, max_size=3).map(b"".join) | damaged(GOOD + CHUNKS + GOOD)


@tried(150)
@given(STREAM | st.binary(max_size=300))
def test_any_bytes_are_read_as_another_parser_reads_them(wire: Wire, data: bytes) -> None:
    """What reaches the application is what h11, which nginx and the like agree with, makes of the same bytes; whatever
    else is sent has a 4xx, 501 or 505. No request hides in another one."""
    need_module("h11")
    wire.echo.seen, wire.echo.is_over = [], False
    received = wire.say(data)
    statuses = [int(found) for found in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]
    assert set(statuses) <= {100, 200, 400, 405, 408, 411, 413, 414, 417, 501, 503, 505}, received
    whole, begun = read_by_another(data)
    seen = wire.echo.seen
    assert seen in (whole[: len(seen)], [*whole, begun]), (seen, whole, begun)
    assert wire.say(b"GET /alive HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def read_by_another(data: bytes) -> tuple[list[Seen], Seen | None]:
    """Return the whole requests that h11 finds, and what it has of the one after them: the application looks itself
    whether a body is as long as it was said to be, and after a body in chunks nothing more is read."""
    import h11

    connection, found, begun = h11.Connection(h11.SERVER), list[Seen](), None
    connection.receive_data(data)
    connection.receive_data(b"")
    with suppress(h11.ProtocolError):
        while (event := connection.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            if isinstance(event, h11.Request):
                begun = event.method.decode(), event.target.decode("latin-1"), b""
            elif isinstance(event, h11.Data) and begun:
                begun = *begun[:2], begun[2] + bytes(event.data)
            elif isinstance(event, h11.EndOfMessage) and begun:
                found, begun = [*found, begun], None
                connection.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
                connection.send(h11.EndOfMessage())
                connection.start_next_cycle()
            else:
                break
    return found, begun
