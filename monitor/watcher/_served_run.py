"""The run as the HTTP server sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from monitor._records import CommandRecord, Event, Snapshot
from monitor.common import Renderings, contained
from monitor.export import Exporter, content_type_of
from monitor.watcher._linger import Linger
from monitor.watcher._reports import Reports
from monitor.watcher._training import Training


class ServedRun:
    """Hand a run to the server: every method may be called from several threads."""

    def __init__(
        self, reports: Reports, training: Training, on_error: Callable[[BaseException], None], linger: Linger
    ) -> None:
        self._reports = reports
        self._training = training
        self._linger = linger
        self._exporter = Exporter(reports.snapshot, on_error=on_error)
        self._scrapes: Renderings[tuple[bytes, str]] = Renderings()

    def snapshot(self) -> Snapshot:
        """Return the latest published state, with what applied commands have changed since."""
        self._linger.note("state")
        return self._reports.snapshot_in_force()

    def history(self, since: int, points: int) -> dict[str, Any]:
        """Return the curves after a cursor."""
        self._linger.note("curves")
        return self._reports.history(since, points)

    def events(self, since: int, before: int, limit: int) -> Sequence[Event]:
        """Return the newest events between two sequence numbers."""
        return [event for event in self._reports.events(since) if event.seq < before][-limit:]

    def submit(self, action: str, **command: Any) -> CommandRecord:
        """Queue a command."""
        return self._training.submit(action, **command)

    def command(self, id: str) -> CommandRecord | None:  # noqa: A002 - the record's own word
        """Return a command by id."""
        return self._training.command(id)

    def commands(self) -> Sequence[CommandRecord]:
        """Return the waiting commands."""
        return self._training.waiting()

    def render_metrics(self, accept: str | None, names: Sequence[str]) -> tuple[bytes, str]:
        """Return one scrape. What is published is rendered once, however many ask for it."""
        form = content_type_of(accept), tuple(names)
        state = contained(lambda _: None, self._reports.snapshot)  # a failure is the collector's to report
        return self._scrapes.get(state, form, lambda: self._exporter.render(accept, names))

    def scraped(self, begun: float) -> None:
        """Note a scrape."""
        self._linger.note("scrape", begun)
