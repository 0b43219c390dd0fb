"""A bound for lines of the log that are alike: who can cause them cannot fill a disk with them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

BURST_LINES = 50
LINES_PER_SECOND = 1.0
_PASSED_ON = "monitor_is_passed_on"
PASSED_ON = {_PASSED_ON: True}
"""``extra=`` of a line that another process has bounded already."""


class Allowance:
    """Allow a ``burst`` of acts, and then so many ``per_second``; count those that were not allowed.

    >>> allowance = Allowance(burst=1, per_second=0.5, clock=lambda: 0.0)
    >>> [allowance.take() for _ in range(3)], allowance.num_refused
    ([True, False, False], 2)
    """

    def __init__(self, burst: int, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst, self._per_second, self._clock = burst, per_second, clock
        self._left, self._looked = float(burst), clock()
        self._lock = threading.Lock()
        self.num_refused = 0

    def take(self) -> bool:
        """Tell whether one more may be done now."""
        with self._lock:
            now = self._clock()
            self._left = min(self._burst, self._left + (now - self._looked) * self._per_second)
            self._looked = now
            is_allowed = self._left >= 1
            self._left -= is_allowed
            self.num_refused += not is_allowed
            return is_allowed

    def forget_refused(self) -> int:
        """Return how many were not allowed since this was asked last."""
        with self._lock:
            num_refused, self.num_refused = self.num_refused, 0
            return num_refused


class _Bounded(logging.Filter):
    """Let pass 50 lines that come from one place of the code, then one a second; the next one says how many it stands
    for."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._places: dict[tuple[str, int], Allowance] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if getattr(record, _PASSED_ON, False):
            return True
        place = record.pathname, record.lineno
        allowance = self._places.setdefault(place, Allowance(BURST_LINES, LINES_PER_SECOND, self._clock))
        if not allowance.take():
            return False
        if num_refused := allowance.forget_refused():
            record.msg, record.args = f"{record.getMessage()} ({num_refused} lines like it were left out)", ()
        return True


def bound_lines(logger: logging.Logger) -> None:
    """Have the lines of a logger bounded, counted from now on: each run has its own."""
    for earlier in [one for one in logger.filters if isinstance(one, _Bounded)]:
        logger.removeFilter(earlier)
    logger.addFilter(_Bounded())
