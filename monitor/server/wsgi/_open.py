"""The connections that are open, so many and no more: of one too many the oldest of its kind makes way."""

from __future__ import annotations

import threading
from typing import Protocol

MAX_STRANGERS = 128
MAX_KNOWN = 64


class Cuttable(Protocol):
    """A connection. It is known once it has shown a credential."""

    is_known: bool

    def abort(self) -> None:
        """Wake whoever waits on it, and have it closed."""


class OpenConnections:
    """Hold the open connections: 128 of strangers, and 64 places that are for known ones alone.

    The oldest is the one that has gone without an answer for longest.
    """

    def __init__(self, max_strangers: int = MAX_STRANGERS, max_known: int = MAX_KNOWN) -> None:
        self._most = {False: max_strangers, True: max_known}
        self._held: dict[bool, dict[Cuttable, None]] = {False: {}, True: {}}
        self._lock = threading.Lock()

    def put(self, connection: Cuttable) -> None:
        """Hold a connection that is new, or make one the newest of its kind: it has just been answered."""
        with self._lock:
            self._remove(connection)
            kind = self._held[connection.is_known]
            kind[connection] = None
            oldest = next(iter(kind)) if len(kind) > self._most[connection.is_known] else None
            if oldest is not None:
                del kind[oldest]
        if oldest is not None:
            oldest.abort()

    def discard(self, connection: Cuttable) -> None:
        """Forget a connection that is closed."""
        with self._lock:
            self._remove(connection)

    def __len__(self) -> int:
        with self._lock:
            return sum(map(len, self._held.values()))

    def _remove(self, connection: Cuttable) -> None:
        for kind in self._held.values():
            kind.pop(connection, None)
