"""Read what earlier sessions of a run left in its folder, for the watcher that continues it."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from monitor._records import Event, Snapshot
from monitor.recorder import Past
from monitor.server import to_snapshot
from monitor.store import STORE_FILE, StoreReader, read_history, to_event

MAX_EVENTS = 2000
"""The newest events that are taken over, as many as a live run keeps."""


def read_past(folder: Path, document: Mapping[str, Any] | None, before: float) -> Past:
    """Return what was recorded before a Unix time.

    Args:
        folder: of the run.
        document: the last state that was kept; None: none was.
        before: what came later an earlier watcher of this very session has written.

    Raises:
        StoreError: the store cannot be read.
    """
    snapshot = _snapshot_of(document)
    if not (folder / STORE_FILE).exists():
        return Past(snapshot=snapshot)
    with StoreReader(folder) as store:
        history = read_history(store)
        events = deque((event for event in _events(store) if event.time < before), maxlen=MAX_EVENTS)
    return Past(
        curves={key: _until(columns, before) for key, columns in history["optimizers"].items()},
        abandoned=history["abandoned"],
        attempt=history["attempt"],
        events=tuple(events),
        snapshot=snapshot,
    )


def _snapshot_of(document: Mapping[str, Any] | None) -> Snapshot | None:
    try:
        return None if document is None else to_snapshot(document)
    except ValueError:  # of another version, or damaged: the store tells most of it
        return None


def _events(store: StoreReader) -> Iterator[Event]:
    number = 0
    while records := store.events(number):
        number = records[-1]["number"]
        yield from map(to_event, records)


def _until(columns: Mapping[str, Any], time: float) -> dict[str, Any]:
    end = bisect_left(columns["time"], time)

    def cut(values: Any) -> Any:
        return {name: cut(one) for name, one in values.items()} if isinstance(values, Mapping) else values[:end]

    return {name: cut(values) for name, values in columns.items()}
