"""The log of a run's events: bounded, numbered, counted."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from monitor._records import EVENT_KINDS, Event

CAPACITY = 2000


class EventLog:
    """Number events and keep the newest. One writer (the recorder); readers copy."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._events: deque[Event] = deque(maxlen=capacity)
        self._last_id = 0
        self._open: dict[tuple[str, str | None, int, str | None], int] = {}
        self.last_seq = 0
        self.totals = dict.fromkeys(EVENT_KINDS, 0)
        self.active = dict.fromkeys(EVENT_KINDS, False)
        self.last_time: dict[str, float] = {}
        self.last_step: dict[str, int] = {}

    def add(self, event: Event, time: float) -> Event:
        """Give an event its number, id and time (if it has none) and keep it; an end takes the id of its start."""
        key = (event.kind, event.optimizer, event.start_step, event.details.get("name"))
        is_end = event.end_step is not None and key in self._open
        event_id = self._open.pop(key) if is_end else self._next_id()
        self.last_seq += 1
        event = replace(event, seq=self.last_seq, id=event_id, time=event.time or time)
        if event.kind in self.totals:
            if not is_end:
                self.totals[event.kind] += 1
                self.last_time[event.kind] = event.time
                self.last_step[event.kind] = event.step
            if event.end_step is None:
                self._open[key] = event.id
            self.active[event.kind] = any(k[0] == event.kind for k in self._open)
        self._events.append(event)
        return event

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def since(self, seq: int) -> tuple[Event, ...]:
        """Return the events after a sequence number, oldest first."""
        return tuple(e for e in list(self._events) if e.seq > seq)
