"""Events as a store returns them, turned back into records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from monitor._errors import StoreError
from monitor._records import Event

_NUMBER = (int, float)
_TYPES: dict[str, tuple[type, ...]] = {
    "kind": (str,),
    "severity": (str,),
    "step": (int,),
    "start_step": (int,),
    "message": (str,),
    "optimizer": (str, type(None)),
    "value": (*_NUMBER, type(None)),
    "end_step": (int, type(None)),
    "details": (dict,),
    "time": _NUMBER,
    "id": (int,),
    "seq": (int,),
}
_SEVERITIES = ("critical", "warning", "info")


def to_event(record: Mapping[str, Any]) -> Event:
    """Return one of :meth:`StoreReader.events` as the event that was written.

    >>> to_event({"number": 7, "kind": "spike", "severity": "warning", "step": 3, "start_step": 3, "message": "up"})
    Event(kind='spike', severity='warning', step=3, start_step=3, message='up', ...)

    In ``details`` JSON has made lists of tuples. Those of a record that was too long for the store are empty.

    Raises:
        StoreError: for what is not an event, in a file that is damaged.
    """
    given = {field.name: record[field.name] for field in fields(Event) if field.name in record}
    for name, value in given.items():
        if not isinstance(value, _TYPES[name]):
            raise StoreError(f"event {record.get('number')} is damaged: its {name} is {repr(value)[:60]}")
    if given.get("severity") not in _SEVERITIES:
        raise StoreError(f"event {record.get('number')} is damaged: its severity is {given.get('severity')!r}")
    try:
        return Event(**given)
    except TypeError as error:
        raise StoreError(f"event {record.get('number')} is damaged: {error}") from error
