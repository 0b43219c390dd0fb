"""The pace of this rank, as the other ranks are to know it."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable

from monitor._records import Step

SECONDS = 1.0
MAX_STEPS = 4096


class Pace:
    """Take the steps of one optimizer; give their median time and the last loss once a second. For one thread.

    Args:
        optimizer: whose steps count: the first one's pace the run.
        clock: a monotonic clock in seconds.

    >>> now = iter([1.0, 1.5, 2.0])
    >>> pace = Pace("SGD", clock=lambda: next(now))
    >>> pace.add(Step("SGD", 1, 1, 0.0, duration=0.25, loss=2.0, gradient_norm=None))
    >>> pace.take(), pace.take()
    ((0.25, 2.0), None)
    """

    def __init__(self, optimizer: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._optimizer, self._clock = optimizer, clock
        self._durations: deque[float] = deque(maxlen=MAX_STEPS)
        self._loss: float | None = None
        self._next = 0.0

    def add(self, step: Step) -> None:
        """Take a step."""
        if step.optimizer == self._optimizer and step.duration is not None:
            self._durations.append(step.duration)
            self._loss = step.loss

    def take(self) -> tuple[float, float | None] | None:
        """Return median time and last loss of the steps since the last answer; None: too early, or there were none."""
        now = self._clock()
        if now < self._next or not self._durations:
            return None
        self._next = now + SECONDS
        step_time = statistics.median(self._durations)
        self._durations.clear()
        return step_time, self._loss
