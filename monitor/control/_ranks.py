"""This process as one of several ranks: where its commands go, and which of them are due."""

from __future__ import annotations

import atexit
import hashlib
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from monitor._records import CommandRecord, RankReading
from monitor.common import Loop
from monitor.control._agreement import POLL_SECONDS, Follower, Leader
from monitor.control._commands import Command, Commands
from monitor.control._meeting import Invited, Inviting
from monitor.control._promises import ABORT, COMMIT, Promises
from monitor.control._rank_stacks import StackAnswers, StackQuestions
from monitor.control._rank_states import OwnState, RankTable
from monitor.control._rank_store import RankStore, open_stores, world
from monitor.control._stacks import Stacks

RETRY_SECONDS = 5.0
"""How long a store that does not answer is left alone."""
RATE_SECONDS = 2.0
"""Over how long the pace of the steps is taken."""
STOP_SECONDS = 0.1
"""How long the end of a run waits for the thread."""
SILENT_SECONDS = 10.0
"""How old what is known of the ranks may be: the store does not answer, and nothing is known."""
FOLLOWS = "rank 0's command holds for all ranks"
MAX_LOOK_SECONDS = 1.0
"""What the time between two looks counts for at most: in more, this process itself stood still, and not the store."""
EXIT_SECONDS = 5.0
"""How long the interpreter's exit waits for a thread that is inside a call of the store: one that comes back while the
interpreter is taken down ends the process with SIGABRT. No call takes longer than the store's timeout."""
_LATE: list[Loop] = []
"""Threads that had not ended when their run did."""
_NUM_ENTERED: Counter[str] = Counter()
"""How many runs of the same optimizers this process has attached, by a digest of their names."""


class Ranks:
    """Hand the training thread its commands: at once where it trains alone, else once all ranks have agreed.

    Args:
        run_id: returns that of this rank's run.
        commands: the queue.
        check_effect: refuses what cannot be carried out here: raises CommandRefusedError.
        num_steps: returns how many steps the first optimizer has made here.
        call_at: has the training thread pass its step boundary once it has made so many steps.
        own_state: returns host, step, step_time and loss of this rank.
        place: returns where rank 0's watcher takes shares: run_id, host, port and secret; empty where it takes none.
        on_place: takes that on the other ranks.
        take_stack: has a function called with the stack of this rank's training thread; False: not now.
        on_error: takes the exception of a store that does not answer.
        clock: a monotonic clock in seconds.
    """

    def __init__(
        self,
        run_id: Callable[[], str],
        commands: Commands,
        *,
        check_effect: Callable[[CommandRecord], None],
        num_steps: Callable[[], int],
        call_at: Callable[[int], None],
        own_state: Callable[[], Mapping[str, Any]],
        place: Callable[[], Mapping[str, Any]] = dict,
        on_place: Callable[[Mapping[str, Any]], None] = lambda _: None,
        take_stack: Callable[[Callable[[str], object]], bool],
        on_error: Callable[[Exception], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run_id, self._commands, self._check_effect = run_id, commands, check_effect
        self._num_steps, self._on_error, self._clock = num_steps, on_error, clock
        self._promises = Promises(num_steps, call_at)
        self._own_state, self._take_stack = own_state, take_stack
        self._place, self._on_place = place, on_place
        self._meeting: Inviting | Invited | None = None
        self._part: Leader | Follower | None = None
        self._states: OwnState | RankTable | None = None
        self._stacks: StackAnswers | StackQuestions | None = None
        self._group = 1, 0
        self._last_look = self._last_round = self._silent = 0.0
        self._is_late = False
        self._loop: Loop | None = None
        self._store_of_training: RankStore | None = None
        self._next_try = 0.0
        self._why = ""
        self._pace: deque[tuple[float, int]] = deque(maxlen=int(RATE_SECONDS / POLL_SECONDS))
        self._is_closed = False
        self._lock = threading.Lock()
        self._channel = ""

    def enter(self, optimizers: Iterable[str]) -> None:
        """Be the next run of these optimizers, by name, that this process attaches: the same run on every rank."""
        digest = hashlib.sha256(repr(list(optimizers)).encode()).hexdigest()[:16]
        _NUM_ENTERED[digest] += 1
        self._channel = f"{digest}-{_NUM_ENTERED[digest]}"

    @property
    def follows(self) -> bool:
        """Tell whether another rank gives the commands."""
        return world()[1] > 0

    @property
    def are_several(self) -> bool:
        """Tell whether other ranks train along."""
        return world()[0] > 1

    def objection(self, record: CommandRecord) -> str | None:
        """Return why no command may be accepted here now, or None."""
        num_ranks, rank = world()
        if num_ranks == 1:
            return None
        if self._why:
            return f"the {num_ranks} ranks cannot agree on a step: {self._why}"
        if self._part is not None:
            return self._part.objection(record)
        return f"this is rank {rank}: send it to rank 0's run and it takes effect on every rank" if rank else None

    @property
    def readings(self) -> tuple[RankReading, ...]:
        """How far each rank is, where this is rank 0 of several and the store answers."""
        states = self._states
        return () if states is None or self._is_late else states.readings

    def gather_stacks(self, own: str) -> Stacks:
        """Return the stacks of all ranks, given that of this one, where this is rank 0; waits some seconds for them."""
        (num_ranks, rank), stacks = world(), self._stacks
        return stacks.gather(own) if isinstance(stacks, StackQuestions) else Stacks({rank: own}, (), num_ranks)

    # ------------------------------------------------------------------------------------------ training thread

    def take(self) -> Command | None:
        """Return the next command that is due before the step that begins now, None: there is none."""
        if world()[0] == 1:
            return self._commands.take()
        while (promise := self._promises.due()) is not None:
            try:
                promise.decision = promise.decision or self._ask(promise.register)
            finally:  # whatever stands in the register: it is not asked for again at each step
                self._promises.keep(promise)
            if promise.decision == COMMIT:
                return promise.command or self._commands.adopt(promise.record, promise.begin_at)
            if promise.is_last and promise.command is not None:
                self._commands.finish(promise.command, "rejected", message=f"the ranks cannot agree: {self._why}")
        return None

    def _ask(self, register: str) -> str:
        assert self._store_of_training is not None
        return self._store_of_training.insist(register, ABORT)

    def call_for_next(self) -> None:
        """Have the training thread called when the next command is due."""
        self._promises.call_for_next()

    # ------------------------------------------------------------------------------------------- other threads

    def wake(self) -> None:
        """Have a command that has just come looked at."""
        if self._loop is not None:
            self._loop.wake()

    def look(self) -> None:
        """Take part where there are several ranks by now; called now and then."""
        num_ranks, rank = world()
        if self._loop is not None and (num_ranks, rank) != self._group:  # gone, or made anew with others
            self._end()
            self._states, self._next_try = None, 0.0
        is_wanted = self._channel and self._loop is None and not self._is_closed
        if num_ranks > 1 and is_wanted and self._clock() >= self._next_try:
            self._next_try, self._group = self._clock() + RETRY_SECONDS, (num_ranks, rank)
            self._why, self._silent, self._last_round = "", 0.0, self._clock()
            self._start()
        self._look_at_store()

    def _start(self) -> None:
        loop = Loop("monitor-ranks", self._round, POLL_SECONDS, on_error=self._fail, on_end=self._say_last)
        loop.wake()
        with self._lock:  # a run that ends meanwhile would not know of the thread
            if not self._is_closed:
                self._loop = loop
                loop.start()

    def _look_at_store(self) -> None:
        """Say once that a store stands still, in which the thread waits."""
        now, was_late = self._clock(), self._is_late
        passed = min(now - max(self._last_look, self._last_round), MAX_LOOK_SECONDS)
        self._silent = 0.0 if self._loop is None else self._silent + passed
        self._last_look = now
        self._is_late = self._silent > SILENT_SECONDS
        if self._is_late and not was_late:
            self._on_error(RuntimeError(f"no answer for {SILENT_SECONDS:g} s"))

    def _open(self, num_ranks: int, rank: int) -> Leader | Follower:
        """Find the other ranks, on the thread: the store may not answer."""
        store, self._store_of_training = open_stores(self._channel)
        if rank == 0:
            leader = Leader(store, num_ranks, self._run_id, self._commands, self._promises, self._steps_in, self._clock)
            states: OwnState | RankTable = RankTable(store, num_ranks, lambda: leader.session, self._own, self._clock)
            stacks: StackAnswers | StackQuestions = StackQuestions(
                store, num_ranks, lambda: leader.session, self._clock
            )
            meeting: Inviting | Invited = Inviting(store, lambda: leader.session, self._place)
            part: Leader | Follower = leader
        else:
            follower = part = Follower(store, rank, self._promises, self._check_effect, self._clock)
            states = OwnState(store, rank, lambda: follower.session, self._own, self._clock)
            stacks = StackAnswers(store, rank, lambda: follower.session, self._take_stack, self._clock)
            meeting = Invited(store, lambda: follower.session, follower.join, self._on_place)
        if store.takes_news:  # else a file, which others may read, and which keeps everything
            self._states, self._stacks, self._meeting = states, stacks, meeting
        self._part = part
        return part

    def _round(self) -> None:
        now = self._clock()
        self._pace.append((now, self._num_steps()))
        if world() != self._group:
            return  # the group is gone, or its store with it
        part = self._part or self._open(*self._group)
        part.round()
        if self._meeting is not None:
            self._meeting.round()
        if part.is_over:
            self._leave()
        for told in (self._states, self._stacks):
            if told is not None:
                told.round()
        self._last_round, self._silent = now, 0.0

    def _leave(self) -> None:
        """Ask the store no more: nobody comes after the leader's run, and its process may go now."""
        meeting, self._meeting = self._meeting, None
        if meeting is not None:
            meeting.close()
        self._is_closed, self._states, self._stacks = True, None, None
        loop, self._loop = self._loop, None  # only now: whoever ends the run waits for this thread
        if loop is not None:
            _await_at_exit(loop)
            loop.end()

    def _own(self) -> dict[str, Any]:
        return {"run_id": self._run_id(), "made": self._num_steps(), **self._own_state()}

    def _say_last(self) -> None:
        """Say that this rank's run has ended, or takes part no more as its group was destroyed, unless the store is
        asked no more. On the thread: a store may not answer."""
        states, meeting = self._states, self._meeting
        if meeting is not None:
            meeting.close()
        if states is not None:
            states.close()

    def _steps_in(self, seconds: float) -> float:
        (then, before), (now, after) = self._pace[0], self._pace[-1]
        return (after - before) / (now - then) * seconds if now > then else 0.0

    def _fail(self, error: Exception) -> None:
        """Take no more commands until the store answers again."""
        loop, self._loop = self._loop, None
        if loop is not None:
            _await_at_exit(loop)
            loop.end()
        self._next_try = self._clock() + RETRY_SECONDS
        self._why = str(error).partition("\n")[0][:200]
        part, self._part, self._states, self._meeting = self._part, None, None, None
        self._let_stacks_go()
        if part is not None:
            part.give_up(self._why)
        self._on_error(error)

    def _let_stacks_go(self) -> None:
        stacks, self._stacks = self._stacks, None
        if stacks is not None:
            stacks.close()

    def _stop(self) -> None:
        with self._lock:
            loop, self._loop = self._loop, None
        is_over = loop is None or loop.stop(STOP_SECONDS)  # else it waits for a store that does not answer
        if loop is not None and not is_over:
            _await_at_exit(loop)
        part, self._part = self._part, None
        if part is not None and is_over and self.are_several:
            part.close()
        elif part is not None:
            part.give_up("the store of the process group is gone")

    def _end(self) -> None:
        self._let_stacks_go()
        try:
            self._stop()
        except RuntimeError as error:
            self._on_error(error)
        for promise in self._promises.drop_all():
            if promise.command is not None and promise.command.status == "pending":
                message = f"the ranks parted before step {promise.fence}, from which it was to hold"
                self._commands.finish(promise.command, "expired", message=message)

    def close(self) -> None:
        """Decide against what is undecided, and end the thread: the run ends."""
        with self._lock:
            self._is_closed = True
        self._end()

    def forget(self) -> None:
        """Let go of everything in a forked child, where the thread is the parent's."""
        self._loop = self._part = self._states = self._stacks = self._meeting = None
        self._lock = threading.Lock()


def _await_at_exit(loop: Loop) -> None:
    """Have the exit wait for a thread that may still be inside the store, or let go of it: torch's code there aborts
    the process where the interpreter ends under it."""
    _LATE[:] = [*(one for one in _LATE if one.is_alive), loop]


@atexit.register
def _wait_for_late() -> None:
    deadline = time.monotonic() + EXIT_SECONDS
    for loop in _LATE:
        loop.join(deadline - time.monotonic())
