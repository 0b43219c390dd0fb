"""Measure what a flood of requests costs the training, and what a crowd of stalled clients costs the owner.

    python benchmarks/flood.py                # about seven minutes on two quiet cores
    python benchmarks/flood.py --quick
    python benchmarks/flood.py --only crowds

**Flood.** Steps of about 4 ms, watched by a process of its own as is the default, while four clients ask as fast as
they are answered. The same flood is aimed at the watcher and, by turns, at another process: cheroot and Flask as they
come, with answers of the same size that are made beforehand, and in a session of its own as the watcher is: the system
may share out the processor by session. Of each pair of neighbouring blocks the ratio of the steps
a second is taken.

**Crowd.** 200 sockets of one client that stall, kept at that number as the server closes some: how long a scrape and
``monitor lr`` take meanwhile, each on a connection of its own, and how many were refused.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import psutil
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from overhead import environment, free_port, table  # noqa: E402
from overhead_peers import Job  # noqa: E402
from tail import watcher_of  # noqa: E402

import monitor  # noqa: E402

NUM_CLIENTS = 4
NUM_SOCKETS = 200
LEAD_SECONDS = 3.0
# What is asked for, with a token or without, and whether each request has a connection of its own.
FLOODS = {
    "scrapes, a connection each": ("GET", "/metrics", False, False),
    "scrapes": ("GET", "/metrics", False, True),
    "wrong paths": ("GET", "/nothing", False, True),
    "state, with the token": ("GET", "/api/v1/run", True, True),
    "state, with the token, a connection each": ("GET", "/api/v1/run", True, False),
    "curves, with the token": ("GET", "/api/v1/history?points=1000", True, True),
    "refused commands, with the token": ("POST", "/api/v1/lr/reduce", True, True),
}
REFUSED = '{"factor": 0.5, "groups": ["none"]}'
CLIENT = """
import http.client, sys, time
host, port, seconds, method, path, token, keeps, sent = sys.argv[1:]
headers = {"Authorization": "Bearer " + token} if token else {}
body = None
if method == "POST":
    headers["Content-Type"], body = "application/json", sent
until, connection, num_answered, num_refused = time.monotonic() + float(seconds), None, 0, 0
while time.monotonic() < until:
    try:
        connection = connection or http.client.HTTPConnection(host, int(port), timeout=10)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        answer.read()
        num_answered += answer.status != 503
        num_refused += answer.status == 503
        if keeps != "True" or answer.will_close:
            connection.close()
            connection = None
    except (OSError, http.client.HTTPException):
        connection = None
print(num_answered, num_refused)
"""
PLAIN = """
import json, sys
from cheroot.wsgi import Server
from flask import Flask, Response
sizes, port = json.loads(sys.argv[1]), int(sys.argv[2])
app, bodies = Flask("plain"), {path: b"x" * size for path, size in sizes.items()}
@app.route("/<path:path>", methods=["GET", "POST"])
def answer(path):
    return Response(bodies["/" + path], content_type="text/plain")
Server(("127.0.0.1", port), app).start()
"""
CROWD = """
import socket, sys, time
port, number, sent = int(sys.argv[1]), int(sys.argv[2]), bytes.fromhex(sys.argv[3])
opened = []
while True:
    while len(opened) < number:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        try:
            sock.connect(("127.0.0.1", port))
            sock.sendall(sent)
        except OSError:
            continue
        sock.setblocking(False)
        opened.append(sock)
    time.sleep(0.05)
    kept = []
    for sock in opened:
        try:
            is_closed = sock.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            is_closed = False
        except OSError:
            is_closed = True
        sock.close() if is_closed else kept.append(sock)
    opened = kept
"""
FORM = b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 500\r\n\r\ntoken="
CROWDS = {
    "nobody": None,
    "idle": b"",
    "half a head": b"GET /metrics HTTP/1.1\r\nHost: local",
    "half a body": b"POST /login HTTP/1.1\r\nHost: localhost\r\n" + FORM,
    "reads no answer": b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50,
}


class Block(NamedTuple):
    """What was counted under a flood: steps a second, requests answered and refused a second, cores of the server."""

    steps: float
    answered: float
    refused: float
    cores: float


class Flooded:
    """A watched training, and another server beside it."""

    def __init__(self, job: Job, run: monitor.Run, plain: tuple[int, int], block_seconds: float) -> None:
        self._job, self._run = job, run
        watcher = watcher_of(run)
        assert watcher is not None
        self._servers = {
            "ours": (urlsplit(run.url or "").port or 0, watcher),
            "plain": (plain[0], psutil.Process(plain[1])),
        }
        self._seconds = block_seconds

    def steps_per_second(self) -> float:
        """Train for a block."""
        begin, num_steps = time.perf_counter(), 0
        while time.perf_counter() - begin < self._seconds:
            self._job.step()
            num_steps += 1
        return num_steps / (time.perf_counter() - begin)

    def block(self, name: str, target: str) -> Block:
        """Train for a block under a flood."""
        method, path, has_token, keeps = FLOODS[name]
        port, server = self._servers[target]
        seconds = LEAD_SECONDS + self._seconds + 0.5
        words = [sys.executable, "-S", "-c", CLIENT, "127.0.0.1", str(port), str(seconds), method, path]
        words += [self._run.token if has_token else "", str(keeps), REFUSED]
        clients = [
            subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True)
            for _ in range(NUM_CLIENTS)
        ]
        time.sleep(LEAD_SECONDS)  # until all of them have begun, and the watcher has answered what it may at once
        before = server.cpu_times()
        steps = self.steps_per_second()
        after = server.cpu_times()
        counts = [[int(number) for number in client.communicate()[0].split()] for client in clients]
        answered, refused = (sum(one) / seconds for one in zip(*counts, strict=True))
        used = after.user + after.system - before.user - before.system
        return Block(steps, answered, refused, used / self._seconds)


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[tuple[Job, monitor.Run]]:
    """Train for a while, watched by a process."""
    job = Job()
    with monitor.attach(
        job.optimizer, job.scheduler, watcher="process", directory=str(folder), port=0, linger=0
    ) as run:
        assert run.url  # it has started
        for _ in range(500):
            job.step()
        run.flush()
        yield job, run


def get(run: monitor.Run, path: str) -> bytes:
    """Ask with the token, whatever the answer is."""
    headers = {"Authorization": f"Bearer {run.token}"}
    data = REFUSED.encode() if path.endswith("reduce") else None
    if data is not None:
        headers["Content-Type"] = "application/json"
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{run.url}{path}", data, headers)) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        return error.read()


@contextlib.contextmanager
def plain_server(run: monitor.Run) -> Iterator[tuple[int, int]]:
    """Start the other server, whose answers are as long as ours; give its port and process."""
    paths = {path for _, path, _, _ in FLOODS.values()}
    sizes, port = {urlsplit(path).path: len(get(run, path)) for path in paths}, free_port()
    words = [sys.executable, "-c", PLAIN, json.dumps(sizes), str(port)]
    with subprocess.Popen(words, start_new_session=True) as server:
        try:
            time.sleep(2.0)
            yield port, server.pid
        finally:
            server.terminate()


def floods(folder: Path, is_quick: bool) -> list[str]:
    """The training under floods."""
    num_rounds, block_seconds = (2, 2.0) if is_quick else (3, 3.0)
    blocks: dict[tuple[str, str], list[Block]] = {}
    calm = []
    with watched(folder) as (job, run), plain_server(run) as plain:
        flooded = Flooded(job, run, plain, block_seconds)
        for _ in range(num_rounds):
            calm.append(flooded.steps_per_second())
            for name in FLOODS:
                for target in random.sample(["ours", "plain"], 2):
                    blocks.setdefault((name, target), []).append(flooded.block(name, target))
    head = ["", "steps/s", "elsewhere", "ratio", "least and most", "cores", "elsewhere", "requests/s", "elsewhere"]
    return [
        "### Floods",
        "",
        f"{NUM_CLIENTS} clients, {num_rounds} pairs of blocks of {block_seconds:g} s each;",
        f"{_median(calm):.0f} steps a second without a flood. `elsewhere`: the same flood aimed at the other",
        "server. Cores: how much CPU the server takes. Requests a second: answered, and refused with 503.",
        "",
        *table(head, [_row(name, blocks[name, "ours"], blocks[name, "plain"]) for name in FLOODS]),
    ]


def _row(name: str, ours: list[Block], plain: list[Block]) -> list[str]:
    ratios = [one.steps / other.steps for one, other in zip(ours, plain, strict=True)]
    own, other = (Block(*map(_median, zip(*found, strict=True))) for found in (ours, plain))
    return [
        name,
        f"{own.steps:.0f}",
        f"{other.steps:.0f}",
        f"{_median(ratios):.2f}",
        f"{min(ratios):.2f} to {max(ratios):.2f}",
        f"{own.cores:.2f}",
        f"{other.cores:.2f}",
        f"{own.answered:.0f} + {own.refused:.0f}",
        f"{other.answered:.0f}",
    ]


def _median(values: Iterable[float]) -> float:
    return statistics.median(list(values))


def crowds(folder: Path, is_quick: bool) -> list[str]:
    """The owner in a crowd, without a training beside it."""
    rows = []
    with watched(folder) as (_, run):
        for name, sent in CROWDS.items():
            with _crowd(urlsplit(run.url or "").port or 0, sent):
                rows.append([name, *_answers(run, 5 if is_quick else 10)])
            time.sleep(6.0)
    return [
        "### Crowds",
        "",
        f"{NUM_SOCKETS} sockets. Seconds, median and longest; `monitor lr` with the start of its interpreter.",
        "",
        *table(["", "scrape", "refused", "monitor lr", "refused"], rows),
    ]


@contextlib.contextmanager
def _crowd(port: int, sent: bytes | None) -> Iterator[None]:
    if sent is None:
        yield
        return
    with subprocess.Popen([sys.executable, "-S", "-c", CROWD, str(port), str(NUM_SOCKETS), sent.hex()]) as crowd:
        time.sleep(2.0)
        yield
        crowd.kill()


def _answers(run: monitor.Run, number: int) -> list[str]:
    scrapes, looks = [], []
    for _ in range(number):
        scrapes.append(_timed(lambda: urllib.request.urlopen(f"{run.url}/metrics", timeout=30).read()))
        words = [sys.executable, "-m", "monitor", "lr", "--url", str(run.url), "--token", run.token]
        looks.append(_timed(lambda words=words: subprocess.run(words, check=True, capture_output=True, cwd=ROOT)))  # type: ignore[misc]
    return [text for found in (scrapes, looks) for text in _shown(found)]


def _timed(act: Any) -> float | None:
    begin = time.perf_counter()
    try:
        act()
    except (OSError, subprocess.CalledProcessError):
        return None
    return time.perf_counter() - begin


def _shown(found: list[float | None]) -> tuple[str, str]:
    seconds = [one for one in found if one is not None]
    told = f"{statistics.median(seconds):.2f}, {max(seconds):.2f}" if seconds else "none"
    return told, f"{found.count(None)} of {len(found)}"


def main() -> None:
    """Print the tables."""
    parts = {"floods": floods, "crowds": crowds}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--only", choices=parts, help="one part")
    args = parser.parse_args()
    logging.getLogger("monitor").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    lines = environment()
    with tempfile.TemporaryDirectory() as folder:
        for name, part in parts.items():
            if args.only in (None, name):
                lines += part(Path(folder), args.quick)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
