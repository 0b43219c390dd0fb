"""The rate at which a watcher that dies may be replaced."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

MAX_RESTARTS = 3
WINDOW_SECONDS = 600.0


class RestartLimit:
    """Allow ``MAX_RESTARTS`` within ``WINDOW_SECONDS``: what happened longer ago counts no more.

    >>> now = 0.0
    >>> limit = RestartLimit(clock=lambda: now)
    >>> [limit.allows_another() for _ in range(4)]
    [True, True, True, False]
    >>> now = WINDOW_SECONDS
    >>> limit.allows_another()
    True
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: deque[float] = deque(maxlen=MAX_RESTARTS)

    def allows_another(self) -> bool:
        """Tell whether one more is within the limit, and count it if it is."""
        now = self._clock()
        if len(self._times) == MAX_RESTARTS and now - self._times[0] < WINDOW_SECONDS:
            return False
        self._times.append(now)
        return True
