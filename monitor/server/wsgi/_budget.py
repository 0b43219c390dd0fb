"""The CPU time that answers may take, as a share of one core."""

from __future__ import annotations

import time
from collections.abc import Callable

MAX_DEBT_SECONDS = 1.0


class CpuBudget:
    """Allow ``share`` of a core on average, and ``burst`` seconds of CPU time at once after a rest.

    What has been spent is known afterwards only, so a budget may be overdrawn; it is then waited for, a second at most:
    one answer that took long shuts nobody out. Not safe for threads: who shares one holds a lock.

    >>> budget = CpuBudget(share=0.2, burst=1.0, clock=lambda: 0.0)
    >>> budget.spend(1.1)
    >>> round(budget.wait(), 3)
    0.5
    >>> budget.spend(60.0)
    >>> budget.wait()
    1.0
    """

    def __init__(self, share: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._share, self._burst, self._clock = share, burst, clock
        self._left, self._looked = burst, clock()

    def spend(self, seconds: float) -> None:
        """Take off CPU time that was used."""
        self._refill()
        self._left = max(self._left - seconds, -self._share * MAX_DEBT_SECONDS)

    def wait(self) -> float:
        """Return the seconds until there is something left; 0 where there is."""
        self._refill()
        return max(0.0, -self._left / self._share)

    def _refill(self) -> None:
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._looked) * self._share)
        self._looked = now
