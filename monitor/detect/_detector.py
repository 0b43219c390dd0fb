"""The base of every detector: records in, at most one event out, an open episode in between."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, ClassVar, Literal

from monitor._records import Event, Sample, Step


class Detector:
    """Watch one condition. Subclasses override ``update``, ``observe`` or ``tick``; all of them never raise for a
    value.

    A condition that begins gives an Event; when it is over the same event comes again (same ``kind``, ``optimizer`` and
    ``start_step``) with ``end_step`` set. A condition that is over as soon as it is known (``outlier``) gives one
    event with ``end_step`` set already. At most one event comes out of one call.

    Step numbers only name records: every record is one observation, in the order of arrival, whatever its number, so
    that a repeated or smaller number is no error and a change of numbering changes nothing but the names in the events.
    """

    kind: ClassVar[str]
    severity: ClassVar[Literal["critical", "warning", "info"]] = "warning"
    state_names: ClassVar[tuple[str, ...]] = ()
    """Attributes that make the state: plain values."""
    part_names: ClassVar[tuple[str, ...]] = ()
    """Parts with a ``state_dict`` of their own: ``rise`` is that of the attribute ``_rise``."""

    def __init__(self) -> None:
        self._open: Event | None = None
        self._muted = 0

    @property
    def active(self) -> Event | None:
        """The event of the condition that holds now, or None."""
        return self._open

    def update(self, step: Step) -> Event | None:  # noqa: ARG002 - for the kinds that need it
        """Take the next step record; return an event that starts or ends with it."""
        return None

    def observe(self, sample: Sample) -> Event | None:  # noqa: ARG002
        """Take a logged value, such as a validation loss; return an event that starts or ends with it."""
        return None

    def tick(self, now: float, *, is_excused: bool = False) -> Event | None:  # noqa: ARG002
        """Take the time, in the unit of ``Step.time``; return an event that starts with it."""
        return None

    def mute(self, records: int) -> None:
        """Start no event within the next ``records`` records, where the kind can be caused by an announced change."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that the detector knows, as plain values that JSON can hold."""
        state: dict[str, Any] = {name: copy.deepcopy(getattr(self, name)) for name in self.state_names}
        state.update({name: self._part(name).state_dict() for name in self.part_names})
        state["kind"] = self.kind
        state["muted"] = self._muted
        state["open"] = None if self._open is None else asdict(replace(self._open, details=dict(self._open.details)))
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what ``state_dict`` returned. ValueError for the state of another kind of detector."""
        if state.get("kind") != self.kind:
            raise ValueError(f"state is of a {state.get('kind')!r} detector, this one is {self.kind!r}")
        missing = [name for name in (*self.state_names, *self.part_names) if name not in state]
        if missing:
            raise ValueError(f"state of {self.kind!r} lacks {', '.join(missing)}; it was not made by state_dict()")
        for name in self.state_names:
            setattr(self, name, copy.deepcopy(state[name]))
        for name in self.part_names:
            self._part(name).load_state_dict(state[name])
        self._muted = state["muted"]
        self._open = None if state["open"] is None else Event(**state["open"])

    def _part(self, name: str) -> Any:
        return getattr(self, f"_{name}")

    def _start(
        self, optimizer: str | None, step: int, start_step: int, message: str, value: float | None, **details: Any
    ) -> Event:
        self._open = Event(self.kind, self.severity, step, start_step, message, optimizer, value, details=details)
        return self._open

    def _end(self, end_step: int, message: str) -> Event | None:
        event, self._open = self._open, None
        return None if event is None else replace(event, end_step=end_step, message=message)

    def _is_muted(self) -> bool:
        """Say whether this record is muted, and count it off."""
        if self._muted:
            self._muted -= 1
            return True
        return False
