"""A real Prometheus for a test: started on a free port with a folder of its own, asked over its HTTP API."""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.requirements import need

PATIENCE_SECONDS = 300.0  # a busy machine starts slowly; what is there is found within a second


class Prometheus:
    """Run the Prometheus of this machine until the ``with`` block ends; its files lie in ``folder``."""

    def __init__(self, folder: Path, config: str, *options: str) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        folder.mkdir(parents=True, exist_ok=True)
        own = config.replace("OWN_ADDRESS", self.url.removeprefix("http://"))
        (folder / "prometheus.yml").write_text(own, encoding="utf-8")
        self._command = [
            need("prometheus"),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={self.url.removeprefix('http://')}",
            "--log.level=warn",
            *options,
        ]
        self._log = folder / "prometheus.log"

    def __enter__(self) -> Prometheus:
        with self._log.open("w") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        try:
            wait_until(self._is_ready, "Prometheus is ready", lambda: self._log.read_text()[-2000:])
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def stop(self) -> None:
        """End the server."""
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def query(self, expression: str, at: float | None = None) -> list[dict[str, Any]]:
        """Return the vector that an expression has at a time, now if none is given."""
        given = {"query": expression} | ({} if at is None else {"time": repr(at)})
        return list(self._get("query", given)["result"])

    def query_range(self, expression: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        """Return the matrix of an expression over a time range."""
        given = {"query": expression, "start": repr(start), "end": repr(end), "step": repr(step)}
        return list(self._get("query_range", given)["result"])

    def label_values(self, label: str, selector: str, start: float, end: float) -> list[str]:
        """Return the values that a label has on the selected series."""
        given = {"match[]": selector, "start": repr(start), "end": repr(end)}
        return list(self._get(f"label/{label}/values", given))

    def value(self, expression: str) -> float:
        """Return the only value of an expression; NaN where there is none."""
        found = self.query(expression)
        return float(found[0]["value"][1]) if found else float("nan")

    def get(self, path: str) -> Any:
        """Return the data that ``/api/v1/<path>`` answers with."""
        return self._get(path, {})

    def _get(self, path: str, given: dict[str, str]) -> Any:
        data = urllib.parse.urlencode(given).encode() if path.startswith("query") else None
        query = "" if data or not given else "?" + urllib.parse.urlencode(given)
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}{query}", data, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{given}: {error.read().decode()}") from None

    def _is_ready(self) -> bool:
        if self._process.poll() is not None:
            raise AssertionError(f"Prometheus ended at once:\n{self._log.read_text()[-4000:]}")
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody has, below those that the system gives to whoever asks for any."""
    while True:
        port = 10_000 + secrets.randbelow(20_000)  # not of `random`, which has the same seed in each worker
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_until(is_so: Callable[[], bool], what: str, details: Callable[[], str] = str) -> None:
    """Return once ``is_so``; fail when that takes too long."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, f"waited {PATIENCE_SECONDS:g} s in vain until {what}: {details()}"
        time.sleep(0.1)
