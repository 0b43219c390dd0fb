"""Where the ranks of a run meet: rank 0 says in the store where its watcher takes shares, and the others look there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

ROUNDS = 20
"""Rounds between two looks at a place that is known: it changes where rank 0's run continues another one."""


class Store(Protocol):
    """What the ranks share: see :class:`~._rank_store.RankStore`."""

    def get(self, key: str) -> Any:
        """Return a value; None where there is none."""

    def set(self, key: str, value: Any) -> None:
        """Set a value."""


class Inviting:
    """Rank 0's part: say where shares are taken, and again when that changes. Called on one thread.

    Args:
        store: what the ranks share.
        session: returns what the keys of the leader's run begin with.
        place: returns run_id, host, port and secret; empty where no shares are taken.
    """

    def __init__(self, store: Store, session: Callable[[], str], place: Callable[[], Mapping[str, Any]]) -> None:
        self._store, self._session, self._place = store, session, place
        self._last: Mapping[str, Any] = {}

    def round(self) -> None:
        """Say it, if it is new."""
        place = self._place()
        if place and place != self._last:
            self._store.set(_key(self._session()), dict(place))
            self._last = place

    def close(self) -> None:
        """What was said stands."""


class Invited:
    """Any other rank's part: look for it, and hand it on. Called on one thread.

    Args:
        store: what the ranks share.
        session: returns what the keys of the leader's run begin with; empty while there is none.
        look_for_session: looks for the leader's run.
        on_found: takes run_id, host, port and secret, and again when they change.
    """

    def __init__(
        self,
        store: Store,
        session: Callable[[], str],
        look_for_session: Callable[[], None],
        on_found: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self._store, self._session, self._on_found = store, session, on_found
        self._look_for_session = look_for_session
        self._last: Any = None
        self._num_rounds = 0

    def round(self) -> None:
        """Look: at every round until it is found, then at one of ROUNDS."""
        self._num_rounds += 1
        if self._last is None or self._num_rounds % ROUNDS == 0:
            self._look()

    def close(self) -> None:
        """Look once more, where nothing was found: what a short run has recorded is to be part of the sums too."""
        if self._last is None:
            self._look_for_session()
            self._look()

    def _look(self) -> None:
        place = self._store.get(_key(self._session())) if self._session() else None
        if place is not None and place != self._last:
            self._last = place
            self._on_found(place)


def _key(session: str) -> str:
    return f"{session}/shares"
