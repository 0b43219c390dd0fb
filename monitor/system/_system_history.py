"""A bounded history of system readings: the last rounds in full, the hours before them thinned."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from monitor._records import GpuReading, HostReading, SystemReading

_Values = tuple[float | None, ...]
_HOST_COLUMNS: dict[str, Callable[[HostReading], float | None]] = {
    "cpu_ratio": lambda host: host.cpu_utilization_ratio,
    "memory_used_bytes": lambda host: host.memory_used_bytes,
    "tree_resident_bytes": lambda host: host.tree_resident_bytes,
}
_GPU_COLUMNS: dict[str, Callable[[GpuReading], float | None]] = {
    "utilization_ratio": lambda gpu: gpu.utilization_ratio,
    "memory_used_bytes": lambda gpu: gpu.memory_used_bytes,
    "temperature_celsius": lambda gpu: gpu.temperature_celsius,
    "power_watts": lambda gpu: gpu.power_watts,
}
_NO_HOST: _Values = (None,) * len(_HOST_COLUMNS)
_NO_GPU: _Values = (None,) * len(_GPU_COLUMNS)


class _Reading(NamedTuple):
    """What the page shows of one round; ``gpus`` is by torch device index."""

    number: int
    counter: float
    time: float
    host: _Values
    gpus: dict[int, _Values]


class SystemHistory:
    """Keep ``capacity`` rounds as they were, and as many again of every 8th and of every 64th round.

    With the defaults and a round every 2 s: 30 minutes in full, 4 hours at 16 s, 32 hours at 128 s. Older rounds are
    thinned, not averaged: every row is a reading that was made.
    """

    def __init__(self, capacity: int = 900, levels: int = 3, stride: int = 8) -> None:
        self._stride = stride
        self._levels: tuple[deque[_Reading], ...] = tuple(deque(maxlen=capacity) for _ in range(levels))
        self._count = 0
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def append(self, reading: SystemReading) -> None:
        """Add one round."""
        host = _NO_HOST
        if reading.host is not None:
            host = tuple(read(reading.host) for read in _HOST_COLUMNS.values())
        gpus = {gpu.index: tuple(read(gpu) for read in _GPU_COLUMNS.values()) for gpu in reading.gpus}
        with self._lock:
            row = _Reading(self._count, reading.counter, reading.time, host, gpus)
            for level, rows in enumerate(self._levels):
                if self._count % self._stride**level == 0:
                    rows.append(row)
            self._count += 1

    def columns(self, since: float = 0.0, points: int = 1000) -> dict[str, Any]:
        """Give the rounds after ``since``, in seconds of the monotonic clock, as columns, ready for JSON, at most
        ``points`` of them.

        Columns are equally long; None stands where there was no reading. The newest round is always among them.

        >>> SystemHistory().columns()["time"]
        []
        """
        if points < 1:
            raise ValueError(f"points must be at least 1, got {points}")
        rows = [row for row in self._rows() if row.counter > since]
        step = -(-len(rows) // points) or 1
        rows = rows[(len(rows) - 1) % step :: step]
        indices = sorted({index for row in rows for index in row.gpus})
        return {
            "time": [row.time for row in rows],
            **_pivot(tuple(_HOST_COLUMNS), [row.host for row in rows]),
            "gpus": {
                str(index): _pivot(tuple(_GPU_COLUMNS), [row.gpus.get(index, _NO_GPU) for row in rows])
                for index in indices
            },
        }

    def _rows(self) -> list[_Reading]:
        """Join the levels: of a coarse one only what is older than the finer ones reach."""
        with self._lock:
            levels = [list(rows) for rows in self._levels]
        joined: list[_Reading] = []
        for rows in levels:
            oldest = joined[0].number if joined else self._count
            joined = [row for row in rows if row.number < oldest] + joined
        return joined


def _pivot(names: Sequence[str], rows: Sequence[Sequence[float | None]]) -> dict[str, list[float | None]]:
    return {name: [row[position] for row in rows] for position, name in enumerate(names)}
