"""How much of a step each rank takes for itself: all but the backward pass, in which it waits for the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from monitor.ranks._share import Share

WINDOW_SECONDS = 5.0
WINDOW_STEPS = 32
"""What one mean is taken over: both, at least."""


class OwnTimes(NamedTuple):
    """Means over the steps of one window, in seconds: a rank's own time by rank, and the time of a step."""

    by_rank: Mapping[int, float]
    step_time: float


class OwnTimeWindow:
    """Take the shares of steps, and give the means of each window.

    Args:
        clock: a monotonic clock in seconds.

    >>> now = iter([0.0, 9.0, 9.0])
    >>> window = OwnTimeWindow(clock=lambda: next(now))
    >>> for _ in range(WINDOW_STEPS):
    ...     window.add({0: Share(0, 1, duration=0.5, own=0.25), 1: Share(0, 1, duration=0.5, own=0.5)})
    >>> window.take()
    OwnTimes(by_rank={0: 0.25, 1: 0.5}, step_time=0.5)
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begin()

    def _begin(self) -> None:
        self._since = self._clock()
        self._sums: dict[int, tuple[float, int]] = {}
        self._duration, self._num_steps = 0.0, 0

    def add(self, shares: Mapping[int, Share]) -> None:
        """Take the shares of one step, by rank; those of a step whose time is not known say nothing."""
        durations = [share.duration for share in shares.values() if share.duration is not None]
        if not durations:
            return
        self._duration += max(durations)
        self._num_steps += 1
        for rank, own in _known(shares.items()):
            total, number = self._sums.get(rank, (0.0, 0))
            self._sums[rank] = total + own, number + 1

    def take(self) -> OwnTimes | None:
        """Return the means of the window, and begin the next one; None: it is not over."""
        if self._num_steps < WINDOW_STEPS or self._clock() - self._since < WINDOW_SECONDS:
            return None
        means = {rank: total / number for rank, (total, number) in sorted(self._sums.items())}
        found = OwnTimes(means, self._duration / self._num_steps)
        self._begin()
        return found


def _known(shares: Iterable[tuple[int, Share]]) -> Iterable[tuple[int, float]]:
    return ((rank, share.own) for rank, share in shares if share.own is not None)
