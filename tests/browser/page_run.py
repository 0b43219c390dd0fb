"""A fake run for the page: like the server's, with the real control room's audit entries, and altered at will."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from monitor._records import CommandRecord, Event, Snapshot
from monitor.control import audit, describe
from tests.server.fake_run import STEP_SECONDS, FakeRun


class PageRun(FakeRun):
    """Keep what the page asked for (``asked``) and sent (``submitted``); ``alter`` changes each snapshot."""

    def __init__(self, steps: int = 300, run_id: str = "fake-0a1b2c") -> None:
        self.alter: Callable[[Snapshot], Snapshot] = lambda snapshot: snapshot
        self.alter_history: Callable[[dict[str, Any]], dict[str, Any]] = lambda history: history
        self.asked: list[tuple[int, int]] = []
        self.submitted: list[dict[str, Any]] = []
        self._run_id = run_id
        super().__init__(time.time, time.time() - steps * STEP_SECONDS)
        self.advance(steps)

    def snapshot(self) -> Snapshot:
        """Return the altered state."""
        snapshot = super().snapshot()
        return self.alter(replace(snapshot, run=replace(snapshot.run, run_id=self._run_id)))

    def history(self, since: int, points: int) -> dict[str, Any]:
        """Note what was asked for, and return it."""
        self.asked.append((since, points))
        return self.alter_history(super().history(since, points))

    def submit(self, action: str, **arguments: Any) -> CommandRecord:
        """Note what was sent, and queue it."""
        self.submitted.append({"action": action, **arguments})
        return super().submit(action, **arguments)

    def publish(self, kind: str, severity: Any, message: str, **more: Any) -> Event:
        """Add an event; a control event gets the audit entry of its command."""
        if kind == "control":
            record = self._records[more["details"]["command"]]
            message, more = describe(record), {**more, "details": audit(record)}
        start_step = more.pop("start_step", None)
        event = super().publish(kind, severity, message, **more)
        if start_step is not None:
            event = self._events[-1] = replace(event, start_step=start_step)
        return event

    def republish(self, event: Event, **changes: Any) -> Event:
        """Publish an event again under its id, as one that has ended is."""
        again = replace(event, seq=len(self._events) + 1, **changes)
        self._events.append(again)
        return again

    def alter_optimizer(self, **changes: Any) -> None:
        """Show other values for the only optimizer."""
        self.alter = lambda snapshot: replace(snapshot, optimizers=(replace(snapshot.optimizers[0], **changes),))
