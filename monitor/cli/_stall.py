"""Where a run stands that has stalled, or had stalled when it ended: the stacks of its training threads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from monitor._errors import StoreError
from monitor._records import STALLED
from monitor.cli._client import Client, ClientError
from monitor.store import KnownRun

_NEWEST = 200
"""Events among which the stacks are looked for: few happen while no step is made."""


def stall_lines(run: Mapping[str, Any], known: KnownRun | None, client: Client | None) -> list[str]:
    """Return what is known of the stacks of a run that makes no step; nothing of one that does.

    Args:
        run: as ``GET /run`` gives it.
        known: its folder, None: it has none here.
        client: to a live run; None: it is over, or serves no HTTP.
    """
    if not run["events_active"].get("stall"):
        return []
    found: Mapping[str, Any] | None = None
    for event in _events(known, client):
        if event["kind"] == "stall":
            found = None  # those of an earlier stall say nothing of this one
        elif event["details"].get("state") == STALLED:
            found = event
    return _lines(found) if found else []


def _events(known: KnownRun | None, client: Client | None) -> Iterable[Mapping[str, Any]]:
    try:
        if client is not None:
            newest: Sequence[Mapping[str, Any]] = client.get(f"/events?limit={_NEWEST}")["events"]
            return newest
        return [*_stored(known)] if known is not None and known.has_store else ()
    except (ClientError, StoreError):  # the state of the run is told all the same
        return ()


def _stored(known: KnownRun) -> Iterator[Mapping[str, Any]]:
    from monitor.store import StoreReader, to_event  # bring SQLite along: only where a run has stalled

    with StoreReader(known.path) as store:
        number = 0
        while records := store.events(number):
            number = records[-1]["number"]
            yield from (asdict(to_event(record)) for record in records)


def _lines(event: Mapping[str, Any]) -> list[str]:
    lines = [f"stalled at step {event['step']:,}: {event['message']}"]
    for one in event["details"]["stacks"]:
        lines += [f"  stack of {one['of']}:", *(f"  {line}" for line in str(one["stack"]).splitlines())]
    return ["", *lines]
