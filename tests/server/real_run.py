"""A real run behind real HTTP, stepped by the test itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from monitor import Run
from tests.control.conftest import Noting
from tests.server.wire import CONTROL, READ, Answer, call, send


@dataclass(frozen=True)
class Live:
    """A run, the optimizer that it watches, and how to ask it."""

    run: Run
    optimizer: Noting

    @property
    def port(self) -> int:
        """Where it is served."""
        return urlsplit(self.run.url).port or 0

    def get(self, path: str) -> Any:
        """Return the JSON at ``/api/v1<path>``."""
        answer = call(self, "GET", f"/api/v1{path}", READ)
        assert answer.status == 200, answer.body
        return answer.json

    def send(self, path: str, body: Any, headers: dict[str, str] = CONTROL, method: str = "POST") -> Answer:
        """Send a command."""
        return send(self, path, body, headers, method)

    def outcome(self, accepted: Answer) -> Any:
        """Ask for an accepted command until it has its outcome, and return it."""
        assert accepted.status == 202, accepted.body
        while (record := self.get(f"/commands/{accepted.json['id']}"))["status"] == "pending":
            pass
        return record

    def audit(self) -> list[dict[str, Any]]:
        """Return what the audit holds, as the API reports it."""
        self.run.flush()
        return [event["details"] for event in self.get("/events")["events"] if event["kind"] == "control"]
