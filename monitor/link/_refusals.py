"""Commands that come in a flood and are refused: which of them leave an entry."""

from __future__ import annotations

import time
from collections.abc import Callable

from monitor._records import CommandRecord
from monitor.common import Allowance

BURST = 100
PER_SECOND = 1.0
_SOURCES = ("api", "alertmanager")


class Refusals:
    """Let 100 refused commands leave an entry at once, and then one a second; the others are counted only.

    Those alone are meant that came over HTTP and were refused before they waited for a step: of what is accepted, no
    more wait than the queue holds, and each has its entry.

    >>> refused = CommandRecord("a1", "reduce", "api", 0.0, status="rejected")
    >>> refusals = Refusals(clock=lambda: 0.0)
    >>> sum(refusals.is_counted_only(refused) for _ in range(103)), refusals.forget_counted()
    (3, 3)
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._allowance = Allowance(BURST, PER_SECOND, clock)

    def is_counted_only(self, record: CommandRecord) -> bool:
        """Tell whether a command, asked about once, leaves no entry."""
        is_refused = record.status == "rejected" and record.step is None and record.source in _SOURCES
        return is_refused and not self._allowance.take()

    def forget_counted(self) -> int:
        """Return how many have left no entry since this was asked last."""
        return self._allowance.forget_refused()
