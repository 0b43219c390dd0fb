"""The serving thread: it binds here, answers there, ends at once and keeps nothing alive."""

from __future__ import annotations

import errno
import gc
import http.client
import io
import logging
import os
import re
import socket
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from flask import Flask

from monitor.server import HttpServer
from monitor.server.wsgi import _connection, _serve
from monitor.server.wsgi._cheroot import NUM_THREADS
from tests.server.fake_run import FakeRun
from tests.server.wire import CONTROL, READ, call, raw, send


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as sock:
        return sock.getsockname()[1]


def is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def num_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# binding


def test_it_answers_at_its_url(server: HttpServer) -> None:
    """The URL names scheme, host and the port that was taken."""
    assert server.url == f"http://127.0.0.1:{server.port}"
    answer = call(server, "GET", "/api/v1/run", READ)
    assert answer.status == 200
    assert answer.json["run"]["name"] == "fake"


def test_nobody_learns_what_serves(server: HttpServer) -> None:
    """No version of ours, of the WSGI server or of Python stands in a header."""
    for answer in (call(server, "GET", "/healthz"), call(server, "GET", "/nothing")):
        assert answer.headers["Server"] == "monitor"
        assert not re.search(r"cheroot|werkzeug|python|\d+\.\d+\.\d+", str(answer.headers).lower())


def test_a_busy_port_is_an_oserror_in_the_callers_thread(app: Flask) -> None:
    """Number, address and cure are named; nothing is left behind."""
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        before = num_descriptors(), threading.active_count()
        with pytest.raises(
            OSError, match=f"cannot listen on 127.0.0.1 port {port}: it is in use; give another"
        ) as info:
            HttpServer(app, port=port)
        assert info.value.errno == errno.EADDRINUSE
        assert (num_descriptors(), threading.active_count()) == before


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_a_host_that_is_not_ours_is_an_oserror(app: Flask, host: str) -> None:
    """With a free choice of port as well: one refusal, not a hundred tries."""
    with pytest.raises(OSError):
        HttpServer(app, host)


def test_without_a_port_the_next_free_one_is_taken(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs on one machine find two ports; past the last one any will do."""
    first = free_port()
    monkeypatch.setattr(_serve, "FIRST_PORT", first)
    monkeypatch.setattr(_serve, "LAST_PORT", first)
    with HttpServer(app) as one, HttpServer(app) as two:
        assert one.port == first
        assert two.port not in (0, first)
        assert call(two, "GET", "/healthz").status == 200


def test_the_ports_to_try_are_those_that_are_documented() -> None:
    """9477 to 9577."""
    assert (_serve.FIRST_PORT, _serve.LAST_PORT) == (9477, 9577)


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_ipv6_is_served(app: Flask, host: str) -> None:
    """The URL has the address in brackets, and so has the Host header."""
    try:
        server = HttpServer(app, host, port=0)
    except OSError as error:
        pytest.skip(f"this machine has no IPv6 loopback: {error}")
    with server:
        assert server.url == f"http://[::1]:{server.port}"
        connection = http.client.HTTPConnection("::1", server.port, timeout=60)
        connection.request("GET", "/healthz")
        assert connection.getresponse().status == 200
        connection.close()


def test_a_wildcard_is_shown_as_this_machine_and_warned_of(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    """http://0.0.0.0 is no address to click; without TLS the token travels in clear."""
    with HttpServer(app, "0.0.0.0", port=0) as server:
        assert server.url == f"http://127.0.0.1:{server.port}"
        assert "the token travels in clear" in caplog.text


def test_loopback_is_not_warned_of(server: HttpServer, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody else hears it."""
    assert caplog.text == ""


def test_a_socket_of_systemd_is_not_taken_for_ours(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training started by a socket unit has LISTEN_PID set; descriptor 3 is not ours."""
    monkeypatch.setenv("LISTEN_PID", "1")
    with HttpServer(app, port=0) as server:
        assert call(server, "GET", "/healthz").status == 200
    assert os.environ["LISTEN_PID"] == "1"


# ending


def test_stopping_frees_port_threads_and_descriptors(app: Flask) -> None:
    """Twenty times over, nothing grows, and the port can be bound again at once."""
    with HttpServer(app, port=0) as first:
        port = first.port
    before = num_descriptors(), threading.active_count()
    for _ in range(20):
        with HttpServer(app, port=port) as server:
            assert call(server, "GET", "/healthz").status == 200
    assert (num_descriptors(), threading.active_count()) == before
    assert is_free(port)


def test_a_stopped_server_is_forgotten(app: Flask) -> None:
    """cheroot keeps statistics of every server in the logging module: ours are taken out."""
    with HttpServer(app, port=0) as server:
        reference = weakref.ref(server._server)
    assert getattr(logging, "statistics", {}) == {}
    del server
    gc.collect()
    assert reference() is None


def test_stop_may_be_called_twice_and_before_start(app: Flask) -> None:
    """Closing twice is no error, nor is closing what never began."""
    server = HttpServer(app, port=0)
    server.stop()
    server.stop()
    assert is_free(server.port)


def test_stop_does_not_wait_for_clients(app: Flask) -> None:
    """Idle, half-sent and never-reading clients are cut; the port is free afterwards."""
    with HttpServer(app, port=0) as server, ExitStack() as stack:
        address = ("127.0.0.1", server.port)
        for start in (
            b"",
            b"GET /healthz HT",
            b"POST /api/v1/pause HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{",
        ):
            stack.enter_context(socket.create_connection(address, timeout=60)).sendall(start)
        kept = http.client.HTTPConnection(*address, timeout=60)
        stack.callback(kept.close)
        kept.request("GET", "/healthz")
        kept.getresponse().read()
        began = time.monotonic()
        server.stop(timeout=60)
        assert time.monotonic() - began < 8  # seconds below the ten of a read time-out
        assert is_free(server.port)


def test_an_answer_under_way_is_finished(run: FakeRun, app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last scrape is not cut off by the end of the run."""
    began, go_on = threading.Event(), threading.Event()
    render = run.render_metrics

    def slow(accept: str | None, names: list[str]) -> tuple[bytes, str]:
        began.set()
        go_on.wait(60)
        return render(accept, names)

    monkeypatch.setattr(run, "render_metrics", slow)
    with HttpServer(app, port=0) as server, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(call, server, "GET", "/metrics")
        assert began.wait(60)
        threading.Timer(0.1, go_on.set).start()
        server.stop(timeout=60)
        assert answer.result(60).status == 200


def test_a_view_that_hangs_does_not_hold_the_end(run: FakeRun, app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the time-out stop() returns; the thread is a daemon and harms nobody."""
    began, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(
        run, "render_metrics", lambda accept, names: (began.set(), go_on.wait(30), (b"", "text/plain"))[-1]
    )
    with HttpServer(app, port=0) as server, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(raw, server, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert began.wait(60)
        server.stop(timeout=1)
        assert is_free(server.port)
        go_on.set()
        answer.exception(60)
    for thread in threading.enumerate():
        if thread.name.startswith("monitor-http"):
            assert thread.daemon
            thread.join(60)


SCRIPT = """
    import sys, threading
    from monitor.server import HttpServer, Security, create_app
    from tests.server.fake_run import FakeRun, TOKEN
    server = HttpServer(create_app(FakeRun(), Security(token=TOKEN)), port=0).start()
    import http.client
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("GET", "/healthz")
    print(connection.getresponse().read().decode(), flush=True)
    {end}
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("pass", 0),
        ("raise SystemExit(3)", 3),
        ("raise ValueError", 1),
        ("threading.Thread(target=sys.exit).start()", 0),
    ],
)
def test_a_process_that_never_closes_its_server_exits(end: str, code: int) -> None:
    """With a connection open and nothing stopped, the interpreter ends by itself and prints nothing of ours."""
    script = textwrap.dedent(SCRIPT).format(end=end)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code
    assert done.stdout.strip() == '{"status":"ok"}'
    assert "monitor/server" not in done.stderr
    assert "cheroot" not in done.stderr


# forks


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_holds_no_port_and_stops_nobody(app: Flask) -> None:
    """A DataLoader worker that outlives the run does not keep the port, and its stop() is not the parent's."""
    with HttpServer(app, port=0) as server:
        from_child, to_parent = os.pipe()
        from_parent, to_child = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                server.stop()
                os.write(to_parent, b"1")
                os.read(from_parent, 1)
            finally:
                os._exit(0)
        try:
            assert os.read(from_child, 1) == b"1"
            assert call(server, "GET", "/healthz").status == 200
            server.stop()
            assert is_free(server.port)
        finally:
            os.write(to_child, b"1")
            os.waitpid(child, 0)
            for descriptor in (from_child, to_parent, from_parent, to_child):
                os.close(descriptor)


def test_a_program_that_is_started_inherits_no_socket(server: HttpServer) -> None:
    """The listening socket closes on exec."""
    assert not os.get_inheritable(server._server.socket.fileno())


# many and slow clients


def test_many_clients_at_once_are_all_answered(server: HttpServer) -> None:
    """More clients than threads: they queue."""
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda _: call(server, "GET", "/api/v1/run", READ).status, range(96)))
    assert answers == [200] * 96


def test_idle_connections_hold_no_thread(server: HttpServer) -> None:
    """A browser opens connections ahead of need: four times as many as threads, and others are served."""
    with ExitStack() as stack:
        for _ in range(4 * NUM_THREADS):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        assert call(server, "GET", "/healthz").status == 200
        assert server._server.requests.idle >= NUM_THREADS - 1


def wait_until(is_true) -> None:
    deadline = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)


def test_a_client_that_trickles_is_cut_off(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time, the head does not: 408 after the deadline of the whole head."""
    monkeypatch.setattr("monitor.server.wsgi._connection.HEAD_SECONDS", 0.5)
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as sock:
        sock.sendall(b"GET /healthz HTTP/1.1\r\n")
        trickle = threading.Event()

        def drip() -> None:
            try:
                while not trickle.wait(0.05):
                    sock.sendall(b"X")
            except OSError:
                pass

        thread = threading.Thread(target=drip)
        thread.start()
        received = b""
        try:
            while chunk := sock.recv(4096):
                received += chunk
        except ConnectionError:
            pass
        trickle.set()
        thread.join()
    assert received.startswith(b"HTTP/1.1 408 ")
    assert b"application/problem+json" in received


def test_slow_clients_in_every_thread_give_way(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many stuck requests as threads delay others by the deadline, not for good."""
    monkeypatch.setattr("monitor.server.wsgi._connection.HEAD_SECONDS", 0.5)
    with ExitStack() as stack:
        for _ in range(2 * NUM_THREADS):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: local")
        assert call(server, "GET", "/healthz").status == 200


def test_a_few_half_sent_requests_hold_no_scrape_up(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight clients that stop in the middle of a head hold eight threads; Prometheus is served by another meanwhile."""
    monkeypatch.setattr("monitor.server.wsgi._connection.HEAD_SECONDS", 60.0)
    with ExitStack() as stack:
        for _ in range(8):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: local")
        wait_until(lambda: server._server.requests.idle == NUM_THREADS - 8)
        assert call(server, "GET", "/metrics").status == 200
        assert server._server.requests.idle <= NUM_THREADS - 8
    wait_until(lambda: server._server.requests.idle == NUM_THREADS)


@pytest.mark.parametrize("more", [b"", b"Expect: 100-continue\r\n"])
def test_a_body_that_never_comes_is_cut_off(server: HttpServer, monkeypatch: pytest.MonkeyPatch, more: bytes) -> None:
    """The body has a deadline of its own, which a client that asks to be told to go on cannot lengthen."""
    monkeypatch.setattr("monitor.server.wsgi._connection.BODY_SECONDS", 0.3)
    form = b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 500\r\n"
    received = raw(server, b"POST /login HTTP/1.1\r\nHost: localhost\r\n" + form + more + b"\r\ntoken=")
    assert re.findall(rb"HTTP/1.1 (\d+)", received) == ([b"100"] if more else []) + [b"408"]
    wait_until(lambda: server._server.requests.idle == NUM_THREADS)


def test_a_refusal_does_not_wait_for_its_body(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who announces a body and withholds it still hears why the request is refused."""
    monkeypatch.setattr("monitor.server.wsgi._connection.BODY_SECONDS", 0.3)
    received = raw(server, b"POST /api/v1/pause HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n{")
    assert received.startswith(b"HTTP/1.1 401 ")
    assert b"Connection: close" in received


def test_no_client_holds_a_thread_for_long() -> None:
    """A head has 3 s and a body 5 s more: what a scrape interval of 15 s leaves room for."""
    assert (_connection.HEAD_SECONDS, _connection.BODY_SECONDS) == (3.0, 5.0)


def test_a_client_that_does_not_read_is_cut_off(
    server: HttpServer, run: FakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer too large for the socket's buffer does not hold a thread past its deadline."""
    monkeypatch.setattr("monitor.server.wsgi._connection.WRITE_SECONDS", 0.3)
    monkeypatch.setattr(run, "render_metrics", lambda accept, names: (b"x" * 50_000_000, "text/plain"))
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_until(lambda: server._server.requests.idle < NUM_THREADS)
        wait_until(lambda: server._server.requests.idle == NUM_THREADS)


def test_a_connection_is_kept_for_the_next_request(server: HttpServer) -> None:
    """The page polls over one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    with closing(connection):
        for _ in range(3):
            connection.request("GET", "/healthz")
            response = connection.getresponse()
            assert (response.status, response.read()) == (200, b'{"status":"ok"}')
            port = connection.sock.getsockname()[1]
        assert connection.sock.getsockname()[1] == port


def test_requests_sent_ahead_are_answered_in_order(server: HttpServer) -> None:
    """Pipelined requests each get their answer."""
    one = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = b"GET /nothing HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    received = raw(server, one + one + last)
    assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"200", b"200", b"404"]


def test_a_scrape_counts_once_it_is_sent(server: HttpServer, run: FakeRun) -> None:
    """The linger at the end ends with a scrape that has arrived."""
    assert call(server, "GET", "/metrics").status == 200
    wait_until(lambda: run.num_scrapes == 1)


# failures


def test_a_failure_inside_the_server_is_heard_and_not_printed(
    run: FakeRun, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """An application that breaks the protocol costs one connection, not a thread."""
    heard: list[BaseException] = []

    def broken(environ, start_response):
        if environ["PATH_INFO"] == "/broken":
            raise RuntimeError("no answer at all")
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    with HttpServer(broken, port=0, on_error=heard.append) as server:
        for _ in range(2 * NUM_THREADS):
            answer = call(server, "GET", "/broken")
            assert (answer.status, answer.headers["Content-Type"]) == (500, "application/problem+json")
        assert call(server, "GET", "/").body == b"ok"
    assert {str(error) for error in heard} == {"no answer at all"}
    assert "no answer at all" in caplog.text
    assert capfd.readouterr() == ("", "")


def test_who_is_told_to_slow_down_leaves_no_traceback(
    server: HttpServer, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """A rate-limited client and a full queue are not failures of ours: nothing is logged of either."""
    caplog.set_level(logging.INFO)
    wrong, form = {"Authorization": "Bearer guess"}, {"Content-Type": "application/x-www-form-urlencoded"}
    for _ in range(10):
        call(server, "GET", "/api/v1/run", wrong)
    asked = [
        call(server, "GET", "/api/v1/run", wrong),
        call(server, "HEAD", "/metrics", wrong | {"Host": "localhost"}),
        call(server, "POST", "/api/v1/pause", wrong, b"x" * 60_000),
        call(server, "POST", "/login", form, b"token=guess"),
        call(server, "POST", "/login", {**form, "Accept": "text/html"}, b"token=guess"),
        call(server, "GET", "/?token=guess"),
        *[send(server, "/pause", {}) for _ in range(64)],
        send(server, "/pause", {}),
        send(server, "/pause", {}, {**CONTROL, "Idempotency-Key": "k"}),
    ]
    assert [answer.status for answer in asked] == [429, 200, *[429] * 4, *[202] * 64, 429, 429]
    assert [record.getMessage() for record in caplog.records] == []
    assert capfd.readouterr() == ("", "")


def test_ordinary_traffic_prints_nothing(server: HttpServer, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither refusals nor clients that hang up reach the terminal of the training."""
    call(server, "GET", "/api/v1/run")
    send(server, "/lr/reduce", "{")
    raw(server, b"nonsense\r\n\r\n")
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall(b"POST /api/v1/pause HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n{")
    call(server, "GET", "/healthz")
    assert capfd.readouterr() == ("", "")


def test_a_large_file_comes_whole(app: Flask, server: HttpServer) -> None:
    """Megabytes over the real server, byte by byte."""
    payload = os.urandom(3_000_000)
    app.add_url_rule("/large", "index_large", lambda: io.BytesIO(payload).getvalue())
    assert call(server, "GET", "/large", CONTROL).body == payload
