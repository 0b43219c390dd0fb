"""A run that is over, as the HTTP server sees it: out of what it left in its folder."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from monitor._errors import ClosedRunError, StoreError
from monitor._records import CommandRecord, Event, Snapshot, no_curves
from monitor.export import Exporter
from monitor.server import to_record, to_snapshot
from monitor.store import KnownRun, StoreReader, read_history, to_event
from monitor.system import SystemHistory


class EndedRun:
    """Hand a run that is over to the server, read-only: its last state, and curves, events and commands of its store.

    ::

        app = create_app(EndedRun(known), Security(token=token))

    Every method may be called from several threads: each answer opens the store anew. A run without a store has no
    curves and no events.

    Raises:
        StoreError: it left no last state, or one that cannot be read.
    """

    def __init__(self, known: KnownRun) -> None:
        self._known = known
        document = known.read_final()
        if document is None:
            raise StoreError(f"{known.run_id} is {known.state} and left no last state behind")
        try:
            self._snapshot = to_snapshot(document)
        except ValueError as error:
            raise StoreError(f"the last state of {known.run_id} cannot be read: {error}") from error
        self._exporter = Exporter(self.snapshot)

    def snapshot(self) -> Snapshot:
        """Return the last state."""
        return self._snapshot

    def history(self, since: int, points: int) -> dict[str, Any]:
        """Return the curves after a cursor."""
        none = SystemHistory().columns()
        document = {**no_curves(since), "system": none}
        if self._has_store:
            with StoreReader(self._known.path) as store:
                document = read_history(store, points, since=since)
        return {**document, "system": {**none, **document["system"]}}

    def events(self, since: int, before: int, limit: int) -> Sequence[Event]:
        """Return the newest events between two sequence numbers."""
        return list(deque((event for event in self._events() if since < event.seq < before), maxlen=limit))

    def _events(self) -> Iterator[Event]:
        if self._has_store:
            with StoreReader(self._known.path) as store:
                number = 0
                while records := store.events(number):
                    number = records[-1]["number"]
                    yield from map(to_event, records)

    @property
    def _has_store(self) -> bool:
        return self._known.has_store

    def submit(self, action: str, **_: Any) -> NoReturn:
        """Refuse a command: nothing is left to change."""
        raise ClosedRunError(f"{self._known.run_id} is over ({self._known.state}); it takes no {action} any more")

    def command(self, id: str) -> CommandRecord | None:  # noqa: A002 - the record's own word
        """Return a command by id."""
        if not self._has_store:
            return None
        with StoreReader(self._known.path) as store:
            number = 0
            while records := store.commands(number):
                number = records[-1]["number"]
                for record in records:
                    if record.get("id") == id:
                        return _to_command(record)
        return None

    def commands(self) -> Sequence[CommandRecord]:
        """Return no command: none waits."""
        return ()

    def render_metrics(self, accept: str | None, names: Sequence[str]) -> tuple[bytes, str]:
        """Render the last state as metrics."""
        return self._exporter.render(accept, names)

    def scraped(self, begun: float) -> None:
        """Note nothing: no end waits for a scrape."""


def _to_command(record: dict[str, Any]) -> CommandRecord:
    try:
        found: CommandRecord = to_record(CommandRecord, record)
    except ValueError as error:
        raise StoreError(f"command {record['number']} is damaged: {error}") from error
    return found
