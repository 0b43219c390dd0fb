"""The run as the HTTP server sees it, and the linger at the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from monitor._records import CommandRecord, Event, Snapshot
from monitor.export import Exporter

if TYPE_CHECKING:
    from monitor._run import Run

PAGE_SECONDS = 10.0
PAGE_LINGER_SECONDS = 3.0


class Linger:
    """Decide how long the endpoint stays up after the end: until whoever was watching has seen the final state.

    ``clock`` is monotonic, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_scrape: float | None = None
        self._last_look: float | None = None
        self._changed = threading.Condition()

    def scraped(self) -> None:
        """Note that ``/metrics`` has been answered."""
        with self._changed:
            self._last_scrape = self._clock()
            self._changed.notify_all()

    def looked(self) -> None:
        """Note that a page or a terminal has read the run's state."""
        with self._changed:
            self._last_look = self._clock()
            self._changed.notify_all()

    def wait(self, seconds: float) -> None:
        """Wait for one more scrape if something has scraped, at most ``seconds``; for an open page at most 3 s."""
        end = self._clock()
        with self._changed:
            needs_scrape = self._last_scrape is not None
            needs_look = self._last_look is not None and end - self._last_look < PAGE_SECONDS
            while True:
                now = self._clock()
                limits = []
                if needs_scrape and (self._last_scrape or 0) <= end:
                    limits.append(end + seconds)
                if needs_look and (self._last_look or 0) <= end:
                    limits.append(end + min(seconds, PAGE_LINGER_SECONDS))
                if not limits or now >= max(limits):
                    return
                self._changed.wait(max(limits) - now)


class Access:
    """Hand a run to the server: every method may be called from several threads."""

    def __init__(self, run: Run, on_error: Callable[[str, BaseException], None], linger: Linger) -> None:
        self._run = run
        self._linger = linger
        self._exporter = Exporter(run.snapshot, on_error=lambda _, error: on_error("export", error))

    def snapshot(self) -> Snapshot:
        """Return the latest published state."""
        self._linger.looked()
        return self._run.snapshot()

    def history(self, since: int, points: int) -> dict[str, Any]:
        """Return the curves after a step."""
        return self._run.history(since, points)

    def events(self, since: int) -> Sequence[Event]:
        """Return the events after a sequence number."""
        return self._run.events(since)

    def submit(self, action: str, **command: Any) -> CommandRecord:
        """Queue a command."""
        return self._run._commands.submit(action, **command).record

    def command(self, id: str) -> CommandRecord | None:  # noqa: A002 - the record's own word
        """Return a command by id."""
        return self._run._commands.get(id)

    def commands(self) -> Sequence[CommandRecord]:
        """Return the waiting commands."""
        return self._run._commands.waiting()

    def render_metrics(self, accept: str | None, names: Sequence[str]) -> tuple[bytes, str]:
        """Render one scrape."""
        return self._exporter.render(accept, names)

    def scraped(self) -> None:
        """Note a scrape."""
        self._linger.scraped()
