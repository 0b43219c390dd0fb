"""Events come out of a store as they went in."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from monitor._errors import StoreError
from monitor._records import Event
from monitor.store import StoreReader, StoreWriter, to_event
from tests.store.made import an_event

EVENTS = [
    an_event(3),
    an_event(2**70, optimizer="adam", value=math.inf, end_step=2**70 + 5, details={"best": [0.5, {"at": None}]}),
    Event("state", "info", 0, 0, "run started\n\u2026", time=1.5, id=7, seq=9),
]
WHOLE = {"number": 4, "kind": "spike", "severity": "warning", "step": 3, "start_step": 3, "message": "up"}


def test_events_come_back_as_they_were(tmp_path: Path) -> None:
    """Every field is the same, infinities and integers of any size among them."""
    writer = StoreWriter(tmp_path / "run.db")
    for event in EVENTS:
        writer.add_event(event)
    writer.close()
    with StoreReader(tmp_path) as store:
        assert [to_event(record) for record in store.events()] == EVENTS


def test_a_record_that_was_too_long_comes_back_without_its_details(tmp_path: Path) -> None:
    """The rest of the event is whole."""
    writer = StoreWriter(tmp_path / "run.db")
    writer.add_event(an_event(3, details={str(i): "x" * 1000 for i in range(200)}))
    writer.close()
    with StoreReader(tmp_path) as store:
        (record,) = store.events()
        assert "left_out" in record
        assert to_event(record) == an_event(3)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"step": "3"}, "its step is '3'"),
        ({"details": None}, "its details is None"),
        ({"severity": "loud"}, "its severity is 'loud'"),
        ({"message": None}, "its message is None"),
        ({"message": ...}, "message"),
        ({"severity": ...}, "its severity is None"),
    ],
)
def test_what_is_no_event_is_refused(changes: dict[str, Any], reason: str) -> None:
    """A field of another type, or one that is missing, is a StoreError that names event and field."""
    record = {name: value for name, value in {**WHOLE, **changes}.items() if value is not ...}
    with pytest.raises(StoreError, match="event 4 is damaged: ") as refusal:
        to_event(record)
    assert reason in str(refusal.value)
