"""A snapshot as a JSON document, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from monitor._records import Snapshot
from monitor.server import _json


def run_document(snapshot: Snapshot) -> dict[str, Any]:
    """Return a snapshot as JSON types; commands_total, whose keys are triples, as a list of objects."""
    document: dict[str, Any] = _json.plain(snapshot)
    document["commands_total"] = [
        {"action": action, "source": source, "outcome": outcome, "count": count}
        for (action, source, outcome), count in snapshot.commands_total.items()
    ]
    return document


def to_snapshot(document: Mapping[str, Any]) -> Snapshot:
    """Return the snapshot that :func:`run_document` made a document of. Fields of another version are passed over.

    Raises:
        ValueError: for what is not such a document.
    """
    plain = {name: value for name, value in document.items() if name != "commands_total"}
    snapshot: Snapshot = _json.to_record(Snapshot, plain)
    try:
        counts = {
            (one["action"], one["source"], one["outcome"]): int(one["count"])
            for one in document.get("commands_total", ())
        }
    except (KeyError, TypeError) as error:
        raise ValueError(f"commands_total cannot be read: {error!r}") from error
    return replace(snapshot, commands_total=counts)
