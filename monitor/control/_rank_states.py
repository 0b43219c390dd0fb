"""The state of each rank: every rank says once a second in the store how far it is, and rank 0 reads it.

A rank whose training thread waits for another one still says so; only one that is gone or stopped says nothing. Clocks
of different hosts are never compared: rank 0 counts by its own how long a rank has said nothing new.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from monitor._records import RankReading, RankState

ROUND_SECONDS = 1.0
"""How often a rank says how far it is, and how often rank 0 reads."""
MAX_READ = 64
"""Ranks that are read in one round; more are read in turns."""
LOST_SECONDS = 30.0
"""How long a rank says nothing before it counts as lost, at least."""
LOST_STEPS = 20
"""How many of its steps that takes, at least."""
LOST_TURNS = 3
"""How many times it is read in that time, at least."""
BEHIND_SECONDS = 3.0
"""A rank is behind that is so many seconds of steps behind the first: more than its word may be old. Steps are counted
from ``attach`` on, as for commands: a rank need not know how many an earlier session made."""
_SHOWN = ("run_id", "host", "step", "step_time", "loss", "url")
_SAID = {*_SHOWN, "made", "number", "is_over"}


class Store(Protocol):
    """What the ranks share: see :class:`~._rank_store.RankStore`."""

    def set(self, key: str, value: Any) -> None:
        """Set a value."""

    def write_once(self, key: str, value: str) -> str:
        """Set a value unless there is one."""

    def get_all(self, keys: list[str]) -> list[Any]:
        """Return values that are all there."""


class OwnState:
    """Say in the store how far this rank is. Called on one thread.

    Args:
        store: what the ranks share.
        rank: this one.
        session: returns what the keys of the leader's run begin with; empty while there is none.
        own: returns run_id, host, step, step_time and loss of this rank, and ``made``, its steps since it was attached.
        clock: a monotonic clock in seconds.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        session: Callable[[], str],
        own: Callable[[], Mapping[str, Any]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._rank, self._session, self._own, self._clock = store, rank, session, own, clock
        self._next_round = 0.0
        self._number = 0
        self.readings: tuple[RankReading, ...] = ()

    def round(self) -> None:
        """Say it, once a second."""
        if self._session() and self._clock() >= self._next_round:
            self._next_round = self._clock() + ROUND_SECONDS
            self._say(is_over=False)

    def close(self) -> None:
        """Say that the run of this rank has ended."""
        if self._session():
            self._say(is_over=True)

    def _say(self, *, is_over: bool) -> None:
        self._number += 1  # so that each word differs from the last, also while no step is made
        self._store.set(_key(self._session(), self._rank), {**self._own(), "number": self._number, "is_over": is_over})


class RankTable:
    """Read in the store how far each rank is: rank 0's part. ``round`` is called on one thread.

    Args:
        store: what the ranks share.
        num_ranks: how many there are.
        session: returns what the keys of this run begin with.
        own: returns run_id, host, step, step_time and loss of this rank, and ``made``, its steps since it was attached.
        clock: a monotonic clock in seconds.
    """

    def __init__(
        self,
        store: Store,
        num_ranks: int,
        session: Callable[[], str],
        own: Callable[[], Mapping[str, Any]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._session, self._own, self._clock = store, session, own, clock
        self._ranks = [_Rank(rank) for rank in range(1, num_ranks)]
        self._num_turns = math.ceil(len(self._ranks) / MAX_READ)
        self._turn = 0
        self._next_round = 0.0
        self.readings: tuple[RankReading, ...] = ()
        """All ranks in order, as of the last round; replaced as a whole."""

    def round(self) -> None:
        """Read as many as one round takes, once a second."""
        now = self._clock()
        if now < self._next_round:
            return
        self._next_round = now + ROUND_SECONDS
        first = self._turn % self._num_turns * MAX_READ
        self._read(self._ranks[first : first + MAX_READ], now)
        self._turn += 1
        self.readings = self._judged()

    def close(self) -> None:
        """The readings stay as they were."""

    def _read(self, ranks: list[_Rank], now: float) -> None:
        keys = [_key(self._session(), one.rank) for one in ranks]
        if self._turn < self._num_turns:  # a key that is not there would be waited for
            for key in keys:
                self._store.write_once(key, "")
        for one, content in zip(ranks, self._store.get_all(keys), strict=True):
            one.take(content, now, most=2 * self._num_turns * ROUND_SECONDS)

    def _judged(self) -> tuple[RankReading, ...]:
        own = self._own()
        there = [own, *(one.content for one in self._ranks if one.content)]
        first = max(there, key=lambda one: one["made"])
        seconds = BEHIND_SECONDS * self._num_turns
        least = first["made"] - max(2.0, seconds / first["step_time"]) if first["step_time"] else 0.0
        patience = max(LOST_SECONDS, LOST_TURNS * self._num_turns * ROUND_SECONDS)
        leader = RankReading(0, "behind" if own["made"] < least else "ok", **_shown(own), last_seen_seconds=0.0)
        return leader, *(one.reading(least, patience) for one in self._ranks)


class _Rank:
    """What another rank has said last, and for how long it has said nothing else."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.content: Mapping[str, Any] = {}
        self._age = self._read_at = 0.0

    def take(self, content: Mapping[str, Any], now: float, most: float) -> None:
        """Take what stands there now. Time in which rank 0 itself did not read counts for ``most`` seconds."""
        passed, self._read_at = min(now - self._read_at, most), now
        said = content if content and content.keys() >= _SAID else {}  # else that of another version
        self._age = self._age + passed if said.get("number") == self.content.get("number") else 0.0
        self.content = said

    def reading(self, least: float, patience: float) -> RankReading:
        """Judge it by the step that it should have reached, and by the least time of silence after which it is lost."""
        age = self._age if self.content else None
        return RankReading(self.rank, self._state(least, patience), **_shown(self.content), last_seen_seconds=age)

    def _state(self, least: float, patience: float) -> RankState:
        if not self.content:
            return "not_attached"
        if self.content["is_over"]:
            return "ended"
        if self._age > max(patience, LOST_STEPS * (self.content["step_time"] or 0.0)):
            return "lost"
        return "behind" if self.content["made"] < least else "ok"


def _shown(content: Mapping[str, Any]) -> dict[str, Any]:
    return {name: content[name] for name in _SHOWN if name in content}


def _key(session: str, rank: int) -> str:
    return f"{session}/state/{rank}"
