"""Commands on several ranks: each takes effect before the same step on every rank, or on none.

Rank 0 leads. It writes a command together with a fence, a step some way ahead. Every rank that has not come there yet
promises to ask before that step. Once all have promised, the leader writes ``commit`` into a register that is written
once; whoever comes to the fence before that, writes ``abort`` there instead. So all ranks read the same word. After an
abort the leader tries again further ahead. All of this goes through the store of the process group; no rank waits for
another one, and no collective is called.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any, Protocol

from monitor._errors import CommandRefusedError
from monitor._records import CommandRecord
from monitor.control._commands import Command, Commands
from monitor.control._promises import ABORT, COMMIT, Promise, Promises

POLL_SECONDS = 0.05
"""How often a rank looks into the store."""
MIN_MARGIN = 3
"""Steps from now to the nearest fence."""
NUM_POLLS = 4
"""Polls that fit before the fence of a first attempt."""
MAX_ATTEMPTS = 3
VOTE_SECONDS = 30.0
"""How long the leader waits for promises."""
MEMBER_SECONDS = 10.0
"""How long the leader waits for ranks that have not attached."""
SESSION_SECONDS = 1.0
"""How often a rank looks whether another run leads."""
PROMISED = "promised"
LATE = "late"
OVER = "over"
"""Stands where the next command would: none comes any more."""


class Store(Protocol):
    """What the ranks share: see :class:`~._rank_store.RankStore`."""

    def has(self, keys: Any) -> bool:
        """Tell whether all of these keys are there."""

    def get(self, key: str) -> Any:
        """Return a value; None where there is none."""

    def set(self, key: str, value: Any) -> None:
        """Set a value."""

    def write_once(self, key: str, value: str) -> str:
        """Set a value unless there is one; return the one that stands there from now on."""


class Leader:
    """Rank 0's part. ``round`` is called on one thread; so is everything below it.

    Args:
        store: what the ranks share.
        num_ranks: how many there are.
        run_id: returns that of the leader's run, which is another one's once it continues that.
        commands: whence commands come.
        promises: of this rank.
        steps_in: returns how many steps are made in so many seconds.
        clock: a monotonic clock in seconds.
    """

    def __init__(
        self,
        store: Store,
        num_ranks: int,
        run_id: Callable[[], str],
        commands: Commands,
        promises: Promises,
        steps_in: Callable[[float], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._num_ranks, self._commands, self._promises = store, num_ranks, commands, promises
        self._steps_in, self._clock = steps_in, clock
        self._session = secrets.token_hex(8)
        self._run_id, self._named = run_id, ""
        self._began = clock()
        self._has_all = False
        self.is_over = False
        self._number = 0
        self._attempt: _Attempt | None = None
        store.set("session", self._session)

    @property
    def session(self) -> str:
        """What the keys of this run begin with."""
        return self._session

    def objection(self, _: CommandRecord) -> str | None:
        """Return why no command may be accepted now, or None."""
        if self._has_all or self._clock() < self._began + MEMBER_SECONDS:
            return None
        return self._missing()

    def _missing(self) -> str:
        there = [rank for rank in range(1, self._num_ranks) if self._store.has([self._key("member", rank)])]
        missing = sorted(set(range(1, self._num_ranks)) - set(there))
        return (
            f"{_ranks(missing)} not attached: a change without them would split the ranks; "
            "call monitor.attach on every rank, with optimizers of the same names and in the same order"
        )

    def _key(self, *words: object) -> str:
        return "/".join(map(str, (self._session, *words)))

    # ------------------------------------------------------------------------------------------------ rounds

    def round(self) -> None:
        """See who is there; begin an attempt, or see how it stands."""
        if self._named != self._run_id():
            self._named = self._run_id()
            self._store.set(self._key("leader"), self._named)
        if not self._has_all:
            self._has_all = self._store.has(self._key("member", rank) for rank in range(1, self._num_ranks))
        if self._attempt is None:
            command = self._commands.take()
            if command is not None:
                self._attempt = _Attempt(command, self._clock())
        if self._attempt is not None:
            self._pursue(self._attempt)

    def _pursue(self, attempt: _Attempt) -> None:
        if not self._has_all:
            if self._clock() > max(self._began, attempt.began) + MEMBER_SECONDS:
                self._reject(attempt, self._missing())
        elif attempt.promise is None:
            self._propose(attempt)
        else:
            self._count(attempt, attempt.promise)

    def _propose(self, attempt: _Attempt) -> None:
        """Write the command, with a fence further ahead at each attempt."""
        if attempt.number == MAX_ATTEMPTS:
            self._reject(attempt, f"the ranks are not in step: {attempt.why}")
            return
        attempt.number += 1
        polls = NUM_POLLS * 2 ** (2 * (attempt.number - 1))
        margin = max(MIN_MARGIN, math.ceil(self._steps_in(polls * POLL_SECONDS)))
        fence, command = self._promises.least_fence(margin), attempt.command
        register = self._key("decision", self._number + 1)
        promise = Promise(register, fence, command.record, command.begin_at, command)
        if not self._promises.make(promise):
            attempt.why = "rank 0 has passed the step"
            return
        self._number += 1
        attempt.promise, attempt.asked = promise, self._clock()
        content = {"fence": fence, "record": asdict(command.record), "begin_at": command.begin_at}
        self._store.set(self._key("command", self._number), content)

    def _count(self, attempt: _Attempt, promise: Promise) -> None:
        keys = {rank: self._key("vote", self._number, rank) for rank in range(1, self._num_ranks)}
        is_complete = self._store.has(keys.values())
        if not is_complete and self._clock() < attempt.asked + VOTE_SECONDS:
            return
        votes = {rank: self._store.get(key) for rank, key in keys.items()}
        against = {rank: vote for rank, vote in votes.items() if vote != PROMISED}
        promise.decision = self._store.write_once(promise.register, ABORT if against else COMMIT)
        if promise.decision == COMMIT:
            self._attempt = None  # its outcome is known at the fence
            return
        attempt.promise = None
        attempt.why = _why(against) if against else "rank 0 or another rank came to the step before all had promised"
        refusals = {rank: vote for rank, vote in against.items() if vote is not None and vote != LATE}
        if refusals:
            self._reject(attempt, "; ".join(f"rank {rank}: {vote}" for rank, vote in refusals.items()))
        elif not is_complete:
            self._reject(attempt, attempt.why)

    def _reject(self, attempt: _Attempt, why: str) -> None:
        self._attempt = None
        self._commands.finish(attempt.command, "rejected", message=why)

    def close(self) -> None:
        """Decide against what is undecided; let the other ranks go, as the store may go with this process."""
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            if attempt.promise is not None:
                attempt.promise.decision = self._store.write_once(attempt.promise.register, ABORT)
            self._commands.finish(attempt.command, "expired", message="the run ended before its ranks had agreed")
        self._store.set(self._key("command", self._number + 1), OVER)

    def give_up(self, why: str) -> None:
        """Begin nothing more, as the store does not answer. Of a promise the training thread learns at the fence."""
        attempt = self._attempt
        if attempt is None:
            return
        if attempt.promise is None:
            self._reject(attempt, why)
        else:
            self._attempt, attempt.promise.is_last = None, True


class _Attempt:
    """A command that the ranks are to agree on."""

    def __init__(self, command: Command, now: float) -> None:
        self.command = command
        self.promise: Promise | None = None
        self.number = 0
        self.began = self.asked = now
        self.why = ""


class Follower:
    """The part of every other rank. ``round`` is called on one thread.

    Args:
        store: what the ranks share.
        rank: this one's.
        promises: of this rank.
        check: refuses what cannot be done here: ``check(record)`` raises CommandRefusedError.
        clock: a monotonic clock in seconds.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        promises: Promises,
        check: Callable[[CommandRecord], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._rank, self._promises = store, rank, promises
        self._check, self._clock = check, clock
        self._next_look = 0.0
        self._number = 1
        self._leader = ""
        self.session = ""
        self.is_over = False
        """Whether the leader's run has ended, and the store is not to be asked any more."""

    def objection(self, _: CommandRecord) -> str | None:
        """Return where commands are to be sent instead."""
        where = f"rank 0's run, {self._leader}," if self._leader else "rank 0's run"
        if self.is_over:
            return f"this is rank {self._rank}, and {where.rstrip(',')} is over: no command takes effect any more"
        return f"this is rank {self._rank}: send it to {where} and it takes effect on every rank"

    def round(self) -> None:
        """Join the leader's run; promise what it asks for; learn what was decided."""
        now = self._clock()
        if now >= self._next_look:
            self._next_look = now + SESSION_SECONDS
            self.join()
        if not self.session:
            return
        content = self._store.get(f"{self.session}/command/{self._number}")
        if content is not None and content != OVER:
            self._answer(content)
        for promise in self._promises.undecided():
            promise.decision = self._store.get(promise.register) or ""
        self.is_over = content == OVER and not self._promises.undecided()

    def join(self) -> None:
        """Look for the leader's run, and be one of its ranks."""
        session = self._store.get("session")
        if session is None:
            return
        self._leader = self._store.get(f"{session}/leader") or ""
        if session == self.session:
            return
        self.session, self._number = session, 1
        self._store.set(f"{session}/member/{self._rank}", True)

    def _answer(self, content: Mapping[str, Any]) -> None:
        number, self._number = self._number, self._number + 1
        record = _record(content["record"])
        promise = Promise(f"{self.session}/decision/{number}", content["fence"], record, content["begin_at"])
        try:
            self._check(record)
            # What is decided already was decided without this vote: against, or on one given before the store failed.
            is_open = not self._store.get(promise.register)
            vote = PROMISED if is_open and self._promises.make(promise) else LATE
        except CommandRefusedError as error:
            vote = str(error)
        self._store.set(f"{self.session}/vote/{number}/{self._rank}", vote)

    def close(self) -> None:
        """Decide against what is undecided: nobody here will ask."""
        for promise in self._promises.undecided():
            self._store.write_once(promise.register, ABORT)

    def give_up(self, _: str) -> None:
        """Nothing was begun here."""


def _record(fields: Mapping[str, Any]) -> CommandRecord:
    groups = fields["groups"]
    return replace(CommandRecord(**fields), groups=None if groups is None else tuple(groups), changes=())


def _why(against: Mapping[int, str | None]) -> str:
    silent = [rank for rank, vote in against.items() if vote is None]
    if silent:
        return f"{_ranks(silent)} not answered within {VOTE_SECONDS:g} s"
    return f"{_ranks(list(against))} passed the step already"


def _ranks(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"rank {shown} has" if len(ranks) == 1 else f"ranks {shown} have"
