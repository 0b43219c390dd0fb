"""Bins in log time: learning curves are power laws, so "per doubling of records" is the horizon without a scale."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from monitor._checks import require_whole

_MOST_KEPT = 128


@dataclass(frozen=True, kw_only=True)
class BinSettings:
    """Set the bins.

    Attributes:
        per_doubling: bins per doubling of the records seen; 12 (measured; 8 and 16 score alike).
        first: records in the first bin; 8.
    """

    per_doubling: int = 12
    first: int = 8

    def __post_init__(self) -> None:
        require_whole(self, per_doubling=(2, 100), first=(1, 10**6))


@dataclass(frozen=True, slots=True)
class Bin:
    """A closed bin: ``count`` records seen until its end, its median, the step of its first record."""

    count: int
    median: float
    first_step: int


class LogBins:
    """Sort a series into bins whose ends grow by the same factor. A wide bin keeps every n-th value: O(1) memory."""

    def __init__(self, settings: BinSettings | None = None) -> None:
        self.settings = settings or BinSettings()
        self._factor = 2.0 ** (1.0 / self.settings.per_doubling)
        self.count = 0
        self._edge = self.settings.first
        self._stride = 1
        self._values: list[float] = []
        self._first_step: int | None = None

    def add(self, value: float, step: int) -> Bin | None:
        """Take one finite value of the record numbered ``step``; return the bin that it closes, if it closes one."""
        self.count = count = self.count + 1
        if self._first_step is None:
            self._first_step = step
        if self._stride == 1 or count % self._stride == 0:
            self._values.append(value)
        return self._close(value) if count >= self._edge else None

    def _close(self, value: float) -> Bin:
        values = self._values or [value]
        median = statistics.median(values)
        first_step = self._first_step
        assert first_step is not None
        closed = Bin(self.count, median, first_step)
        self._values, self._first_step = [], None
        self._edge = max(self.count + 1, math.ceil(self._edge * self._factor))
        self._stride = max(1, (self._edge - self.count) // _MOST_KEPT)
        return closed

    def state_dict(self) -> dict[str, Any]:
        """Return what is known, as plain values."""
        return {
            "count": self.count,
            "edge": self._edge,
            "stride": self._stride,
            "values": list(self._values),
            "first_step": self._first_step,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what ``state_dict`` returned."""
        self.count, self._edge, self._stride = state["count"], state["edge"], state["stride"]
        self._values, self._first_step = list(state["values"]), state["first_step"]
