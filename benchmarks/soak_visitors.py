"""Everybody who comes to a run, in one process: a scraper, a page, an owner, strangers; and a note of what it uses.

    python benchmarks/soak_visitors.py '{"url": ..., "token": ..., "pids": [..., ...], "samples": "samples.csv"}'

Started by benchmarks/soak.py; runs until its standard input is closed, then prints how often each came as JSON.
"""

from __future__ import annotations

import csv
import http.client
import itertools
import json
import random
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

SAMPLE_SECONDS = 2.0
NUM_QUICK = 2500
"""Commands that come ten a second, until the lists in which a run keeps them are full; the others one a second."""
PAGE = Path(__file__).resolve().parents[1] / "monitor" / "server" / "page"
PAGE_FILES = ["plotly.min.js", *sorted(path.name for path in PAGE.iterdir() if path.suffix != ".html")]
USES = [f"{what} {who}" for who in ("training", "watcher") for what in ("rss", "threads", "files")]


class Visitors:
    """Clients of one run, each on a thread of its own, until told to end."""

    def __init__(self, url: str, token: str, pids: list[int], samples: str) -> None:
        parts = urlsplit(url)
        self._address = parts.hostname or "", parts.port or 0
        self._headers = {"Authorization": f"Bearer {token}"}
        self._processes = [psutil.Process(pid) for pid in pids]
        self._samples = samples
        self._is_over = threading.Event()
        self._cursor = 0
        self._kept = http.client.HTTPConnection(*self._address, timeout=30)
        self._commands = itertools.cycle(
            [("reduce", {"factor": 0.5, "reason": "soak"}), ("undo", {}), ("reduce", {"factor": 7}), ("restore", {})]
        )
        self.counts: Counter[str] = Counter()

    def run(self) -> None:
        """Come and go until standard input is closed."""
        jobs = {self.scrape: 1.0, self.open_page: 5.0, self.poll: 1.0, self.command: 0.1, self.disturb: 0.1}
        threads = [threading.Thread(target=self._repeat, args=job) for job in jobs.items()]
        threads.append(threading.Thread(target=self._note))
        for thread in threads:
            thread.start()
        sys.stdin.read()
        self._is_over.set()
        for thread in threads:
            thread.join()
        print(json.dumps(self.counts))

    def _repeat(self, act: Callable[[], object], seconds: float) -> None:
        while not self._is_over.wait(seconds):
            self._try(act)

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except (OSError, http.client.HTTPException) as error:
            self.counts[f"failed: {act.__name__}, {type(error).__name__}"] += 1

    def _ask(self, method: str, path: str, body: Any = None, kept: http.client.HTTPConnection | None = None) -> Any:
        connection = kept or http.client.HTTPConnection(*self._address, timeout=30)
        headers = {**self._headers, **({"Content-Type": "application/json"} if body is not None else {})}
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            what = "/static/*" if path.startswith("/static/") else path.partition("?")[0]
            self.counts[f"{method} {what}: {answer.status}"] += 1
            return answer.read()
        except BaseException:
            connection.close()
            raise
        finally:
            if kept is None:
                connection.close()

    def scrape(self) -> None:
        """Scrape on one connection, as Prometheus does."""
        self._ask("GET", "/metrics", kept=self._kept)

    def open_page(self) -> None:
        """Load the page with all its files, and the whole history."""
        self._ask("GET", "/")
        for name in PAGE_FILES:
            self._ask("GET", f"/static/{name}")
        self._ask("GET", "/api/v1/history?since=0&points=1000")

    def poll(self) -> None:
        """Read state, events and what is new of the curves, as an open page does."""
        self._ask("GET", "/api/v1/run")
        answer = json.loads(self._ask("GET", f"/api/v1/history?since={self._cursor}&points=1000"))
        self._cursor = answer.get("next", 0)
        self._ask("GET", "/api/v1/events?since=0")

    def command(self) -> None:
        """Reduce, undo, ask for what is refused, restore: soon more than the run keeps of its events."""
        verb, body = next(self._commands)
        self._ask("POST", f"/api/v1/lr/{verb}", body)
        if sum(self.counts[f"POST /api/v1/lr/{one}: 202"] for one in ("reduce", "undo", "restore")) > NUM_QUICK:
            self._is_over.wait(1.0)

    def disturb(self) -> None:
        """Come as a stranger: say nothing, half of something or nonsense, or leave before the answer."""
        said = random.choice([b"", b"GET / HT", b"\0\xff" * 40, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"])
        with socket.create_connection(self._address, timeout=30) as connection:
            connection.sendall(said)
            self._is_over.wait(random.choice([0.0, 0.05, 0.5]))
        self.counts["strangers"] += 1

    def _note(self) -> None:
        with open(self._samples, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["step", *USES])
            while not self._is_over.wait(SAMPLE_SECONDS):
                step = self._step()
                if step is not None:
                    writer.writerow([step, *self._usage()])
                    file.flush()

    def _step(self) -> int | None:
        try:
            return int(json.loads(self._ask("GET", "/api/v1/run"))["optimizers"][0]["global_step"])
        except (OSError, http.client.HTTPException, ValueError, LookupError):
            self.counts["failed samples"] += 1
            return None

    def _usage(self) -> list[int]:
        uses = ((one.memory_info().rss, one.num_threads(), one.num_fds()) for one in self._processes)
        return [number for use in uses for number in use]


if __name__ == "__main__":
    Visitors(**json.loads(sys.argv[1])).run()
