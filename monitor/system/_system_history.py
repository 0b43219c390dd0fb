"""The history of the system readings, and how it is laid out for the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from monitor._records import GpuReading, HostReading, SystemReading
from monitor.common import SIZE, BoundedHistory, Bucket

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


def values_of(reading: SystemReading) -> dict[str, float | None]:
    """Return what is kept of a round, by name: ``cpu_ratio``, ``gpus/0/power_watts`` and so on."""
    host = reading.host
    values = {name: None if host is None else read(host) for name, read in _HOST_COLUMNS.items()}
    gpus = {f"gpus/{gpu.index}/{name}": read(gpu) for gpu in reading.gpus for name, read in _GPU_COLUMNS.items()}
    return {**values, **gpus}


class _Reading(Bucket):
    """What the page shows of a round, or of the last of several; ``gpus`` is by torch device index."""

    __slots__ = ("gpus", "host", "time")

    def __init__(self, reading: SystemReading) -> None:
        super().__init__(reading.counter)
        self.time = reading.time
        self.host = _NO_HOST if reading.host is None else tuple(read(reading.host) for read in _HOST_COLUMNS.values())
        self.gpus = {gpu.index: tuple(read(gpu) for read in _GPU_COLUMNS.values()) for gpu in reading.gpus}

    def merge(self, other: _Reading) -> None:
        """Become the later round: every row that is shown is a reading that was made."""
        super().merge(other)
        self.time, self.host, self.gpus = other.time, other.host, other.gpus


class SystemHistory:
    """The readings of a run in bounded memory: see :class:`monitor.common.BoundedHistory`.

    With the default ``size`` and a round every 2 s: the last 34 minutes in full, and at least 1024 readings of the
    whole run, evenly spaced.
    """

    def __init__(self, size: int = SIZE) -> None:
        self._history = BoundedHistory[_Reading](size)

    def append(self, reading: SystemReading) -> None:
        """Add one round."""
        self._history.append(_Reading(reading))

    def columns(self, since: float = 0.0, points: int = 1000) -> dict[str, Any]:
        """Give the rounds after ``since``, in seconds of the monotonic clock, as columns, ready for JSON, at most
        ``points`` of them.

        Columns are equally long; None stands where there was no reading. The newest round is always among them.

        >>> SystemHistory().columns()["time"]
        []
        """
        if points < 1:
            raise ValueError(f"points must be at least 1, got {points}")
        rows = self._history.after(since, points)
        indices = sorted({index for row in rows for index in row.gpus})
        return {
            "time": [row.time for row in rows],
            **_pivot(tuple(_HOST_COLUMNS), [row.host for row in rows]),
            "gpus": {
                str(index): _pivot(tuple(_GPU_COLUMNS), [row.gpus.get(index, _NO_GPU) for row in rows])
                for index in indices
            },
        }


def _pivot(names: Sequence[str], rows: Sequence[Sequence[float | None]]) -> dict[str, list[float | None]]:
    return {name: [row[position] for row in rows] for position, name in enumerate(names)}
