"""The run as the HTTP server sees it, and the linger at the end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from monitor._records import CommandRecord, Event, Snapshot
from monitor.export import Exporter

if TYPE_CHECKING:
    from monitor._engine import Engine

_LOG = logging.getLogger("monitor")
RECENT_SECONDS = 10.0
RECENT_SCRAPE_SECONDS = 180.0
PAGE_LINGER_SECONDS = 3.0
SILENT_SECONDS = 1.0


class Linger:
    """Decide how long the endpoint stays up after the end: until whoever was watching has seen the final state.

    A scrape is waited for as long as ``attach(linger=...)`` says, a page that was open (its state and its curves) 3 s
    at most. ``clock`` is monotonic, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[str, float] = {}
        self._changed = threading.Condition()

    def note(self, what: str) -> None:
        """Note that something was answered: ``scrape``, ``state`` or ``curves``."""
        with self._changed:
            self._last[what] = self._clock()
            self._changed.notify_all()

    def wait(self, seconds: float) -> None:
        """Wait for one more scrape if there was one in three minutes, at most ``seconds``; for a page at most 3 s.

        A wait that may take longer than a second is told in the log. Ctrl-C ends it, and nothing but it: the script
        goes on.
        """
        end = self._clock()
        with self._changed:
            last = {
                what: when
                for what, when in self._last.items()
                if 0 <= end - when < (RECENT_SCRAPE_SECONDS if what == "scrape" else RECENT_SECONDS)
            }
        limits = {what: seconds if what == "scrape" else min(seconds, PAGE_LINGER_SECONDS) for what in last}
        if max(limits.values(), default=0.0) > SILENT_SECONDS:
            _LOG.info("%s", _announced(limits, end - last.get("scrape", end)))
        try:
            self._wait_until({what: end + limit for what, limit in limits.items()}, end)
        except KeyboardInterrupt:
            _LOG.info("the wait at the end was cut short by Ctrl-C")

    def _wait_until(self, until: dict[str, float], end: float) -> None:
        with self._changed:
            while waits := [limit for what, limit in until.items() if self._last[what] <= end]:
                left = max(waits) - self._clock()
                if left <= 0:
                    return
                self._changed.wait(left)


def _announced(limits: dict[str, float], since_scrape: float) -> str:
    """Say how long the wait may take, why, and how to be rid of it."""
    if "scrape" in limits:
        why = f"one more scrape, so that the end of the run is seen (the last one was {since_scrape:.0f} s ago)"
    else:
        why = "an open page, or `monitor top`, to show the end"
    return (
        f"waiting up to {max(limits.values()):g} s for {why}; Ctrl-C ends the wait, "
        "attach(linger=0) or MONITOR_LINGER=0 turns it off"
    )


class Access:
    """Hand a run to the server: every method may be called from several threads."""

    def __init__(self, engine: Engine, on_error: Callable[[BaseException], None], linger: Linger) -> None:
        self._engine = engine
        self._linger = linger
        self._exporter = Exporter(engine.reports.snapshot, on_error=on_error)

    def snapshot(self) -> Snapshot:
        """Return the latest published state, with what applied commands have changed since."""
        self._linger.note("state")
        return self._engine.reports.snapshot_in_force()

    def history(self, since: int, points: int) -> dict[str, Any]:
        """Return the curves after a cursor."""
        self._linger.note("curves")
        return self._engine.reports.history(since, points)

    def events(self, since: int) -> Sequence[Event]:
        """Return the events after a sequence number."""
        return self._engine.reports.events(since)

    def submit(self, action: str, **command: Any) -> CommandRecord:
        """Queue a command."""
        return self._engine.commands.submit(action, **command).record

    def command(self, id: str) -> CommandRecord | None:  # noqa: A002 - the record's own word
        """Return a command by id."""
        return self._engine.commands.get(id)

    def commands(self) -> Sequence[CommandRecord]:
        """Return the waiting commands."""
        return self._engine.commands.waiting()

    def render_metrics(self, accept: str | None, names: Sequence[str]) -> tuple[bytes, str]:
        """Render one scrape."""
        return self._exporter.render(accept, names)

    def scraped(self) -> None:
        """Note a scrape."""
        self._linger.note("scrape")
