"""The stacks of all ranks through the store that they share: rank 0 asks, the thread of each rank answers.

No rank waits for another one: who asks reads what is there after some seconds, and what a rank answers later is read by
nobody. An answer takes the place of the last one of its rank, so that a run that stalls often fills no store.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from monitor.control._stack_taker import MAX_STACK
from monitor.control._stacks import Stacks

MAX_ASKED = 64
"""Ranks whose stacks are gathered, rank 0 included: the first ones."""
GATHER_SECONDS = 5.0
"""How long rank 0 waits for the others."""
LOOK_SECONDS = 1.0
"""How often a rank looks whether it is asked."""
READ_SECONDS = 0.25
"""How often rank 0 reads what has come."""


class Store(Protocol):
    """What the ranks share: see :class:`~._rank_store.RankStore`."""

    def get(self, key: str) -> Any:
        """Return a value; None where there is none."""

    def set(self, key: str, value: Any) -> None:
        """Set a value."""


class StackAnswers:
    """Answer rank 0 where it asks. ``round`` is called on one thread, which waits for nothing.

    Args:
        store: what the ranks share.
        rank: this one.
        session: returns what the keys of the leader's run begin with; empty while there is none.
        take: has a function called with the stack of this rank, some time later on another thread; False: not now.
        clock: a monotonic clock in seconds.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        session: Callable[[], str],
        take: Callable[[Callable[[str], object]], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._rank, self._session, self._take, self._clock = store, rank, session, take, clock
        self._next_look = 0.0
        self._seen: Any = None
        self._taken: list[tuple[str, Any, str]] = []  # a list: another thread appends to it

    def close(self) -> None:
        """Nobody waits here."""

    def round(self) -> None:
        """Look, once a second, whether the stack is asked for; write it once it is taken."""
        while self._taken:
            session, number, stack = self._taken.pop()
            self._store.set(_answer(session, self._rank), [number, stack])
        session, now = self._session(), self._clock()
        if session and now >= self._next_look and self._rank < MAX_ASKED:
            self._next_look = now + LOOK_SECONDS
            self._look(session)

    def _look(self, session: str) -> None:
        number = self._store.get(_question(session))
        if number is None or (session, number) == self._seen:
            return
        if self._take(lambda stack: self._taken.append((session, number, stack))):
            self._seen = session, number


class StackQuestions:
    """Ask the other ranks for their stacks: rank 0's part. ``round`` is called on one thread.

    Args:
        store: what the ranks share.
        num_ranks: how many there are.
        session: returns what the keys of this run begin with.
        clock: a monotonic clock in seconds.
    """

    def __init__(
        self, store: Store, num_ranks: int, session: Callable[[], str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store, self._num_ranks, self._session, self._clock = store, num_ranks, session, clock
        self._number = 0
        self._next_read = 0.0
        self._request: _Request | None = None
        self._is_closed = False

    def gather(self, own: str) -> Stacks:
        """Ask all ranks once, and return what has come after GATHER_SECONDS at most. Waits: to be called on a thread
        that has nothing else to do."""
        asked = range(1, min(self._num_ranks, MAX_ASKED))
        self._number += 1
        request = self._request = _Request(self._number, asked)
        if not self._is_closed:
            request.is_complete.wait(GATHER_SECONDS)
        self._request = None
        stacks = {0: own, **request.stacks}
        return Stacks(stacks, [rank for rank in asked if rank not in stacks], self._num_ranks)

    def round(self) -> None:
        """Ask where that is wanted, and read what has come. Asks for no key that is not there."""
        request, now = self._request, self._clock()
        if request is None or now < self._next_read:
            return
        self._next_read = now + READ_SECONDS
        if not request.is_asked:
            request.is_asked = True
            self._store.set(_question(self._session()), request.number)
        for rank in [rank for rank in request.asked if rank not in request.stacks]:
            self._read(request, rank)
        if len(request.stacks) == len(request.asked):
            request.is_complete.set()

    def _read(self, request: _Request, rank: int) -> None:
        number, stack = self._store.get(_answer(self._session(), rank)) or (None, "")
        if number == request.number:
            request.stacks[rank] = str(stack)[-MAX_STACK:]

    def close(self) -> None:
        """Let go whoever waits: nothing comes any more."""
        self._is_closed = True
        request = self._request
        if request is not None:
            request.is_complete.set()


class _Request:
    def __init__(self, number: int, asked: Sequence[int]) -> None:
        self.number, self.asked, self.is_asked = number, asked, False
        self.stacks: dict[int, str] = {}
        self.is_complete = threading.Event()


def _question(session: str) -> str:
    return f"{session}/stacks"


def _answer(session: str, rank: int) -> str:
    return f"{session}/stack/{rank}"
