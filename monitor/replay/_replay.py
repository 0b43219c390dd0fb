"""Run the detectors over a finished curve: what the monitor would have said, and when."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from monitor._records import Event, Step
from monitor.detect import Detector, DetectorSet, default_detectors
from monitor.replay._curves import Curve, read_curve


def replay(source: str | Path | Curve, detectors: Iterable[Detector] | None = None) -> list[Event]:
    """Return the events that the detectors find in a curve, in the order in which they would have been raised.

    Each event comes once, with ``end_step`` if its condition ended within the curve. Steps are in the unit of the
    file's step column. A detector sees only what came before: the same events as live, but for stall and slowdown,
    as files hold no times.

    Args:
        source: a file (see ``read_curve``), or a curve that has been read.
        detectors: default: ``default_detectors`` for the file's logging interval.

    Raises:
        ValueError: the file is no curve; the message begins with ``path:line``.

    >>> [event.kind for event in replay("run.csv")]
    ['spike']
    """
    curve = source if isinstance(source, Curve) else read_curve(source)
    if detectors is None:
        detectors = default_detectors(steps_per_record=curve.steps_per_record)
    watch = DetectorSet(detectors)
    found: dict[tuple[str, int, int, str | None], Event] = {}
    for record in curve.records:
        for event in watch.update(record) if isinstance(record, Step) else watch.observe(record):
            found[event.kind, event.start_step, event.step, event.details.get("name")] = event
    return list(found.values())


def as_json(event: Event) -> dict[str, Any]:
    """Return an event as the plain values that ``monitor replay --json`` prints. NaN and infinities become None."""
    value = event.value if event.value is not None and math.isfinite(event.value) else None
    return {
        "kind": event.kind,
        "severity": event.severity,
        "step": event.step,
        "start_step": event.start_step,
        "end_step": event.end_step,
        "value": value,
        "message": event.message,
    }


def as_line(event: Event) -> str:
    """Return an event as a line for a person."""
    end = "" if event.end_step is None else f" to {event.end_step}"
    return f"step {event.step}  {event.kind} ({event.severity}, from {event.start_step}{end}): {event.message}"
