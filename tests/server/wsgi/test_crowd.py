"""A crowd of clients that stall, from one stranger: the owner and the scraper are answered all the same."""

from __future__ import annotations

import http.client
import socket
import time
from contextlib import ExitStack, closing, suppress

import pytest
from click.testing import CliRunner
from flask import Flask

from monitor.cli._main import main
from monitor.server import HttpServer
from monitor.server.wsgi import _connection, _workers
from monitor.server.wsgi._budget import CpuBudget
from monitor.server.wsgi._cheroot import NUM_THREADS
from monitor.server.wsgi._open import MAX_KNOWN, MAX_STRANGERS, OpenConnections
from tests.server.fake_run import TOKEN, FakeRun
from tests.server.wire import CONTROL, READ, call, raw
from tests.server.wsgi.test_serve import wait_until

NUM_SOCKETS = 200
SCRAPE = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
FORM = b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 500\r\n\r\ntoken="
KINDS = {
    "idle": b"",
    "half a head": b"GET /metrics HTTP/1.1\r\nHost: local",
    "half a body": b"POST /login HTTP/1.1\r\nHost: localhost\r\n" + FORM,
    "no reader": SCRAPE * 50,
}
"""What a client sends before it says, and reads, no more."""


def sockets(server: HttpServer, sent: bytes, stack: ExitStack, number: int = NUM_SOCKETS) -> None:
    """Open connections that stall after ``sent``, with the smallest buffer for answers."""
    for _ in range(number):
        sock = stack.enter_context(closing(socket.socket()))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        sock.connect(("127.0.0.1", server.port))
        sock.sendall(sent)


@pytest.fixture
def large(run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have scrapes of which no socket's buffers take in fifty."""
    monkeypatch.setattr(run, "render_metrics", lambda accept, names: (b"x" * 100_000, "text/plain"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("large")
def test_200_sockets_of_a_stranger_shut_nobody_out(server: HttpServer, kind: str) -> None:
    """Scrapes, and the command line, which opens connections of its own, are answered and not turned away."""
    with ExitStack() as stack:
        sockets(server, KINDS[kind], stack)
        for _ in range(5):
            assert call(server, "GET", "/metrics").status == 200
            shown = CliRunner().invoke(main, ["lr", "--url", server.url, "--token", TOKEN], prog_name="monitor")
            assert shown.exit_code == 0, shown.output


def test_the_oldest_stranger_makes_way(server: HttpServer) -> None:
    """Of one connection too many the first one is closed; the last one is served."""
    with ExitStack() as stack:
        first = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=60))
        wait_until(lambda: len(server._server.open_connections) == 1)
        sockets(server, b"", stack, MAX_STRANGERS)
        assert first.recv(1) == b""
        assert call(server, "GET", "/healthz").status == 200
        assert len(server._server.open_connections) <= MAX_STRANGERS
    wait_until(lambda: len(server._server.open_connections) == 0)


def test_strangers_never_take_the_place_of_a_known_connection(server: HttpServer) -> None:
    """A page that is open keeps its connection, however many strangers come after it."""
    page = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    with closing(page), ExitStack() as stack:
        page.request("GET", "/api/v1/run", headers=READ)
        page.getresponse().read()
        port = page.sock.getsockname()[1]
        sockets(server, b"", stack)
        page.request("GET", "/api/v1/run", headers=READ)
        assert page.getresponse().status == 200
        assert page.sock.getsockname()[1] == port


def test_a_wrong_token_makes_nobody_known(server: HttpServer) -> None:
    """Only a request that was let through does."""
    stranger = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    with closing(stranger), ExitStack() as stack:
        stranger.request("GET", "/api/v1/run", headers={"Authorization": "Bearer guess"})
        answer = stranger.getresponse()
        assert (answer.status, answer.read()[:1]) == (401, b"{")
        sockets(server, b"", stack)
        assert stranger.sock.recv(1) == b""


class FakeConnection:
    def __init__(self, is_known: bool = False) -> None:
        self.is_known = is_known
        self.is_aborted = False

    def abort(self) -> None:
        self.is_aborted = True


def test_known_connections_have_places_of_their_own() -> None:
    """Each kind has its bound, and who has just been answered goes last."""
    held = OpenConnections(max_strangers=2, max_known=1)
    strangers, owner, other = [FakeConnection() for _ in range(3)], FakeConnection(True), FakeConnection(True)
    for connection in (owner, strangers[0], strangers[1], strangers[0], strangers[2]):
        held.put(connection)
    assert [one.is_aborted for one in (*strangers, owner)] == [False, True, False, False]
    held.put(other)
    assert owner.is_aborted
    assert not strangers[0].is_aborted


def test_the_bounds_are_those_that_are_documented() -> None:
    """docs/security.md and docs/limits.md name them."""
    assert (MAX_STRANGERS, MAX_KNOWN) == (128, 64)
    assert (_workers.STRANGERS_SHARE, _workers.KNOWN_SHARE, _workers.BURST_SECONDS) == (0.15, 0.3, 0.5)
    assert (_connection.STRANGER_PATIENCE_SECONDS, _connection.KNOWN_PATIENCE_SECONDS) == (0.025, 1.0)


# the share of CPU


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_budget_fills_up_again_to_its_burst() -> None:
    """What was overdrawn is waited for, a second at most; a long rest allows no more than the burst."""
    clock = Clock()
    budget = CpuBudget(share=0.5, burst=2.0, clock=clock)
    budget.spend(2.25)
    assert budget.wait() == 0.5
    clock.now = 1.0
    assert budget.wait() == 0.0
    clock.now = 1000.0
    budget.spend(2.25)
    assert budget.wait() == 0.5
    budget.spend(100.0)
    assert budget.wait() == 1.0


@pytest.fixture
def overdrawn(server: HttpServer) -> None:
    """Leave strangers no CPU for a second."""
    server._server.requests.spend(3600.0)


@pytest.mark.usefixtures("overdrawn")
def test_who_exceeds_the_share_of_strangers_is_told_to_come_back(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After two seconds in the line: 503 with Retry-After, which costs no thread and no rendering."""
    monkeypatch.setattr(_workers, "MAX_WAIT_SECONDS", 0.2)
    answer = raw(server, SCRAPE, timeout=60)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"application/problem+json" in answer
    assert b"Retry-After: 1" in answer


def test_an_owner_has_a_share_of_his_own(server: HttpServer) -> None:
    """With nothing left for strangers, a connection that is known is answered."""
    page = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    with closing(page):
        for share in (0.0, 3600.0):
            server._server.requests.spend(share)
            page.request("GET", "/api/v1/run", headers=CONTROL)
            answer = page.getresponse()
            assert (answer.status, answer.read()[:1]) == (200, b"{")


def test_what_known_ones_exceed_their_share_by_is_taken_off_that_of_strangers(server: HttpServer) -> None:
    """A token is known once its head is read only: new connections with one wait with the strangers."""
    requests = server._server.requests
    assert requests.spend(_workers.BURST_SECONDS / 2, is_known=True) == 0.0
    assert requests.spend(3600.0, is_known=True) > 0


def test_answers_are_charged_to_who_asked(app: Flask, server: HttpServer) -> None:
    """CPU time of a view is taken off the share of the kind that the connection is of by then."""

    def busy() -> str:
        until = time.thread_time() + 0.2
        while time.thread_time() < until:
            pass
        return ""

    app.add_url_rule("/busy", "index_busy", busy)
    budgets = server._server.requests.budgets
    budgets[True] = budgets[False] = None  # type: ignore[assignment]
    budgets[True], budgets[False] = (CpuBudget(1e-9, 0.1), CpuBudget(1e-9, 100.0))
    assert call(server, "GET", "/busy", CONTROL).status == 200
    wait_until(lambda: budgets[True].wait() > 0)
    assert budgets[False].wait() == 0


def test_a_crowd_of_strangers_keeps_no_thread(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """While every thread has a head that does not come, the next request is answered long before their deadline."""
    monkeypatch.setattr(_connection, "HEAD_SECONDS", 600.0)
    with ExitStack() as stack:
        sockets(server, KINDS["half a head"], stack, 2 * NUM_THREADS)
        wait_until(lambda: server._server.requests.idle == 0)
        assert call(server, "GET", "/metrics").status == 200


def test_who_trickles_keeps_no_thread_either(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then buys a stranger no time in a crowd."""
    monkeypatch.setattr(_connection, "HEAD_SECONDS", 600.0)
    with ExitStack() as stack:
        trickling = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(NUM_THREADS)
        ]
        for sock in trickling:
            sock.sendall(b"GET /metrics HTTP/1.1\r\n")
        wait_until(lambda: server._server.requests.idle == 0)
        asked = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=60))
        asked.settimeout(0.01)
        asked.sendall(SCRAPE)
        received, deadline = b"", time.monotonic() + 60
        while not received and time.monotonic() < deadline:
            for sock in trickling:
                with suppress(OSError):
                    sock.send(b"X")
            with suppress(TimeoutError):
                received = asked.recv(12)
        assert received == b"HTTP/1.1 200"
