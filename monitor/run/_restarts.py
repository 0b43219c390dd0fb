"""The rate at which something may be started anew, such as a watcher that dies."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

MAX_RESTARTS = 3
WINDOW_SECONDS = 600.0


class RestartLimit:
    """Allow ``most`` starts within ``seconds``: what happened longer ago counts no more.

    >>> now = 0.0
    >>> limit = RestartLimit(MAX_RESTARTS, WINDOW_SECONDS, clock=lambda: now)
    >>> [limit.allows_another() for _ in range(4)]
    [True, True, True, False]
    >>> now = WINDOW_SECONDS
    >>> limit.allows_another()
    True
    """

    def __init__(
        self,
        most: int,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock, self._most, self._seconds = clock, most, seconds
        self._times: deque[float] = deque(maxlen=most)

    def allows_another(self) -> bool:
        """Tell whether one more is within the limit, and count it if it is."""
        now = self._clock()
        if len(self._times) == self._most and now - self._times[0] < self._seconds:
            return False
        self._times.append(now)
        return True
