"""The time that the training thread waits for a ``DataLoader``."""

from __future__ import annotations

from time import perf_counter
from typing import Any

from monitor.probe._compilation import untraced
from monitor.probe._trace import current
from monitor.probe._watched import report


def watch_next(original: Any) -> Any:
    """Account for the time that a loader's iterator takes."""

    def __next__(self: Any) -> Any:  # noqa: N807
        start = None
        try:
            start = perf_counter()
        except Exception as error:  # noqa: BLE001 - must not reach the training loop
            report(error)
        try:
            return original(self)
        finally:
            add_waiting(start)

    return __next__


@untraced
def add_waiting(start: float | None) -> None:
    """Write the time since ``start`` into the trace as waiting for data."""
    if start is None:
        return
    try:
        current().add_waiting(start, perf_counter())
    except Exception as error:  # noqa: BLE001 - must not reach the training loop
        report(error)
