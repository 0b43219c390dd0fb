"""All that a run leaves on this machine: its folder, who reads it, the thread that touches the disk, and the run store.

The store is one SQLite file with the run's curves, readings, events, commands and facts (docs/store.md). One process
writes it (:class:`StoreWriter`), any number read it meanwhile and afterwards (:class:`StoreReader`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from monitor.store._claim import UNFINISHED, claim_run, give_back, newest_run
from monitor.store._command import own_command
from monitor.store._disk import PATIENCE_SECONDS, DiskThread, answer_within
from monitor.store._folder import RunFolder, check_directory, make_run_id, prune, remove_run
from monitor.store._known import STORE_FILE, KnownRun, NoHomeError, list_runs, runs_directory, without_parts
from monitor.store._proof import proof
from monitor.store._retention import held, surplus
from monitor.store._socket import answers, connect, leave, listen
from monitor.store._trusted import UntrustedError, read_text

if TYPE_CHECKING:
    from monitor.store._curve import Point
    from monitor.store._event import to_event
    from monitor.store._export import FORMATS, TABLES, export
    from monitor.store._history import read_history
    from monitor.store._reader import Attempt, Series, StoreReader
    from monitor.store._writer import MAX_BYTES, StoreWriter

__all__ = [
    "FORMATS",
    "MAX_BYTES",
    "PATIENCE_SECONDS",
    "STORE_FILE",
    "TABLES",
    "UNFINISHED",
    "Attempt",
    "DiskThread",
    "KnownRun",
    "NoHomeError",
    "Point",
    "RunFolder",
    "Series",
    "StoreReader",
    "StoreWriter",
    "UntrustedError",
    "answer_within",
    "answers",
    "check_directory",
    "claim_run",
    "connect",
    "export",
    "give_back",
    "held",
    "leave",
    "list_runs",
    "listen",
    "make_run_id",
    "newest_run",
    "own_command",
    "proof",
    "prune",
    "read_history",
    "read_text",
    "remove_run",
    "runs_directory",
    "surplus",
    "to_event",
    "without_parts",
]

_LATER = {
    "Point": "_curve",
    "to_event": "_event",
    **dict.fromkeys(("FORMATS", "TABLES", "export"), "_export"),
    "read_history": "_history",
    **dict.fromkeys(("Attempt", "Series", "StoreReader"), "_reader"),
    **dict.fromkeys(("MAX_BYTES", "StoreWriter"), "_writer"),
}
"""What needs SQLite, and where it is: imported when it is first asked for, as the training process never does."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    return found
