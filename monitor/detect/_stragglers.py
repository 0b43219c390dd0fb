"""``straggler``: a rank that the others wait for, as it takes longer for what it does by itself."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import replace

from monitor._records import Event

SHARE = 0.2
"""How much of a step the others wait for a straggler."""
NUM_WINDOWS = 3
"""In how many windows in a row, to begin and to end."""


class Stragglers:
    """Give an event for a rank that the others wait for in several windows in a row, and the same again with its end.

    A rank's own time is that of a step without the backward pass, in which the ranks wait for each other. What the
    slowest takes beyond the median of the others is what they wait.

    >>> ranks = Stragglers()
    >>> [len(ranks.look({0: 0.01, 1: 0.01, 2: 0.05}, 0.06, step)) for step in (50, 100, 150)]
    [0, 0, 1]
    """

    def __init__(self) -> None:
        self._open: Event | None = None
        self._rank = -1
        self._num_windows = 0

    def look(self, own_times: Mapping[int, float], step_time: float, step: int) -> list[Event]:
        """Take the mean own time of each rank and the mean time of a step, in seconds, over a window that ends at a
        step of the run; return an event that begins or ends."""
        rank, excess = _slowest(own_times)
        is_slow = excess > SHARE * step_time > 0.0
        if self._open is not None:
            return self._look_for_end(is_slow and rank == self._rank, step)
        if not is_slow or rank != self._rank:
            self._num_windows = 0
        self._rank = rank if is_slow else -1
        self._num_windows += is_slow
        if self._num_windows < NUM_WINDOWS:
            return []
        self._num_windows = 0
        self._open = _start(rank, excess, step_time, step)
        return [self._open]

    def _look_for_end(self, is_still: bool, step: int) -> list[Event]:
        self._num_windows = 0 if is_still else self._num_windows + 1
        if self._num_windows < NUM_WINDOWS or self._open is None:
            return []
        message = f"the others wait no longer for rank {self._rank}"
        ended, self._open, self._num_windows = replace(self._open, end_step=step, message=message), None, 0
        return [ended]


def _slowest(own_times: Mapping[int, float]) -> tuple[int, float]:
    """Return the rank with the longest own time, and by how much it is longer than the median of the others."""
    if len(own_times) < 2:
        return -1, 0.0
    rank = max(own_times, key=lambda one: own_times[one])
    return rank, own_times[rank] - statistics.median(own for one, own in own_times.items() if one != rank)


def _start(rank: int, excess: float, step_time: float, step: int) -> Event:
    message = (
        f"the other ranks wait for rank {rank}: apart from the backward pass it takes {excess * 1e3:.3g} ms of a step "
        f"longer than they do ({excess / step_time:.0%} of the step)"
    )
    details = {"name": f"rank {rank}", "rank": rank, "excess_seconds": excess, "step_seconds": step_time}
    return Event("straggler", "warning", step, step, message, value=excess / step_time, details=details)
