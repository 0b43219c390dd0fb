"""The linger: how long the endpoint stays up after the end of a run."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable

_LOG = logging.getLogger("monitor")
RECENT_SECONDS = 10.0
RECENT_SCRAPE_SECONDS = 180.0
PAGE_LINGER_SECONDS = 3.0
SILENT_SECONDS = 1.0
LOOK_SECONDS = 0.2


class Linger:
    """Decide how long the endpoint stays up after the end: until whoever was watching has seen the final state.

    A scrape is waited for as long as the caller says; a page that was open (its state and its curves) 3 s at most where
    the script itself waits. ``clock`` is monotonic, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[str, float] = {}
        self._end: float | None = None
        self._changed = threading.Condition()

    def note(self, what: str, when: float | None = None) -> None:
        """Note that something was answered: ``scrape``, ``state`` or ``curves``; ``when`` the answer was begun, by
        the clock: one begun before the end has not shown it."""
        with self._changed:
            self._last[what] = max(self._last.get(what, -math.inf), self._clock() if when is None else when)
            self._changed.notify_all()

    def note_end(self) -> None:
        """Note that what is answered from now on shows the end of the run."""
        self._end = self._clock()

    def _end_or_now(self) -> float:
        return self._clock() if self._end is None else self._end

    def wait(self, seconds: float) -> None:
        """Wait for one more scrape if there was one in three minutes, at most ``seconds``; for a page at most 3 s.

        The log announces a wait that may take longer than a second. Ctrl-C ends it, and nothing but it: the
        script continues.
        """
        end = self._end_or_now()
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

    def stay(self, seconds: float, page_seconds: float, is_told_to_end: Callable[[], bool]) -> None:
        """Wait for one more scrape, if there was one in three minutes, ``seconds`` at most; and for as long as a page
        is open, ``page_seconds`` at most. With 0 ``seconds`` wait for nobody."""
        end = self._end_or_now()
        while not is_told_to_end() and self._is_wanted(end, seconds, page_seconds):
            with self._changed:
                self._changed.wait(LOOK_SECONDS)

    def _is_wanted(self, end: float, seconds: float, page_seconds: float) -> bool:
        now, scraped = self._clock(), self._last.get("scrape")
        waits_for_scrape = (
            scraped is not None and scraped <= end and end - scraped < RECENT_SCRAPE_SECONDS and now - end < seconds
        )
        looked = max(self._last.get("state", -math.inf), self._last.get("curves", -math.inf))
        is_looked_at = now - looked < RECENT_SECONDS and now - end < page_seconds
        return waits_for_scrape or (seconds > 0 and is_looked_at)

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
        "attach(wait_for_scrape=0) turns it off"
    )
