"""The log of a run's events: bounded, numbered, counted."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
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

    def begin_after(self, events: Sequence[Event], last_seq: int, totals: Mapping[str, int]) -> None:
        """Continue the numbers and counts of an earlier session and keep its events. None of them lasts on: what a
        detector still sees, it says again."""
        self._events = deque(events, maxlen=self._events.maxlen)
        self._open.clear()
        self._last_id = max((event.id for event in events), default=last_seq)
        self.last_seq = last_seq
        self.active = dict.fromkeys(self.active, False)
        self.totals = {kind: totals.get(kind, 0) for kind in self.totals}
        begun = {event.id: event for event in reversed(events) if event.kind in self.totals}  # the end of one is newer
        for event in reversed(begun.values()):
            self.last_time[event.kind], self.last_step[event.kind] = event.time, event.step

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def since(self, seq: int) -> tuple[Event, ...]:
        """Return the events after a sequence number, oldest first."""
        return tuple(e for e in list(self._events) if e.seq > seq)
