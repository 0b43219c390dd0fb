"""The course of a run: the curves of its optimizers, and what was done over once training had gone back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from monitor._records import Step
from monitor.common import BoundedHistory, thinned
from monitor.recorder._past import Columns, Past
from monitor.recorder._series import SeriesBucket, columns, part_columns

MAX_PARTS = 8
"""Parts of the curves of an optimizer that were done over and are kept: the newest."""
PART_POINTS = 200


class Course:
    """Keep the course of every optimizer in bounded memory. One writer; safe to read from any thread.

    Args:
        optimizers: their names.
    """

    def __init__(self, optimizers: Iterable[str]) -> None:
        self._curves = {key: BoundedHistory[SeriesBucket]() for key in optimizers}
        self._parts: dict[str, deque[Columns]] = {key: deque(maxlen=MAX_PARTS) for key in self._curves}
        self._last: dict[str, int] = {}
        self._num_steps = 0
        self._attempt = 0

    def begin_with(self, past: Past) -> None:
        """Take over what earlier sessions have recorded, before the first step."""
        self._num_steps, self._attempt = past.num_rows, past.attempt
        for key, rows in past.rows().items():
            if key in self._curves:
                self._curves[key].begin_with(rows)
                self._last[key] = max((row.last for row in rows), default=0)
                self._parts[key].extend(past.abandoned.get(key, ()))

    def add(self, step: Step, ema: float | None, shown_time: float) -> None:
        """Take one step, the smoothed loss after it and its Unix time as it is shown."""
        key = step.optimizer
        number = step.global_step + step.is_skipped  # one that was skipped has the number of the one before
        if number <= self._last.get(key, 0):
            self._abandon(key, number)
        self._last[key] = step.global_step
        self._num_steps += 1
        self._curves[key].append(SeriesBucket(step, ema, self._num_steps, shown_time))

    def _abandon(self, key: str, step: int) -> None:
        """Set apart what is done over from a step on that training has come to again."""
        gone = self._curves[key].cut(lambda bucket: bucket.ends_before(step))
        if gone:
            self._parts[key].append(part_columns(thinned(gone, PART_POINTS)))
            self._attempt += 1

    def time_of(self, cursor: int) -> float:
        """Return the time of the last step up to a cursor; 0 before the first step."""
        found = [curve.until(cursor) for curve in self._curves.values()]
        return max((bucket.time for bucket in found if bucket is not None), default=0.0)

    def history(self, since: int, points: int) -> dict[str, Any]:
        """Return the course of each optimizer after a cursor as columns, at most ``points`` each, and the next cursor.

        A cursor counts the steps that all optimizers have made together, whatever their own numbers. Whenever training
        goes back to an earlier step, ``attempt`` changes and what was done over moves to ``abandoned``, which is told
        with all the rest, where ``since`` is 0.
        """
        chosen = {key: curve.after(since, points) for key, curve in self._curves.items()}
        last = max((buckets[-1].cursor for buckets in chosen.values() if buckets), default=since)
        return {
            "since": since,
            "next": last,
            "resolution": max((bucket.count for buckets in chosen.values() for bucket in buckets), default=1),
            "optimizers": {key: columns(buckets) for key, buckets in chosen.items()},
            "attempt": self._attempt,
            "abandoned": {} if since else {key: list(parts) for key, parts in self._parts.items()},
        }
