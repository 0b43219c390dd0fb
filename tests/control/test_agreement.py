"""Several ranks agree on the step of a command: random orders of everything that ranks and their threads do."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from monitor._errors import CommandRefusedError
from monitor._records import CommandRecord
from monitor.control._agreement import MEMBER_SECONDS, VOTE_SECONDS, Follower, Leader
from monitor.control._commands import Command, Commands
from monitor.control._promises import ABORT, COMMIT, Promise, Promises
from monitor.control._ranks import Ranks


class SharedStore:
    """What the ranks share, in one process; JSON as on the wire."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def has(self, keys: Iterable[str]) -> bool:
        return all(key in self.values for key in keys)

    def get(self, key: str) -> Any:
        return json.loads(self.values[key]) if key in self.values else None

    def set(self, key: str, value: Any) -> None:
        self.values[key] = json.dumps(value)

    def write_once(self, key: str, value: str) -> str:
        found: str = json.loads(self.values.setdefault(key, json.dumps(value)))
        return found


class Rank:
    """One rank: a training thread, cut into the parts between which others may run, and a thread of ours."""

    def __init__(self, store: SharedStore, rank: int, now: Callable[[], float], between: Callable[[], None]) -> None:
        self.store, self.rank, self.between = store, rank, between
        self.num_steps, self.boundary_at, self.is_inside = 0, 10**9, False
        self.paused_at, self.is_busy = 0, False
        self.log: list[tuple[str, int]] = []
        self.refuses, self.run_id = "", "run"
        self.commands = Commands(
            lambda _: None, on_waiting=lambda: None, on_finished=lambda _: None, clock=now, counter=now
        )
        self.promises = Promises(lambda: self.num_steps, self._call_at)
        self.part: Leader | Follower = (
            Leader(store, 3, lambda: self.run_id, self.commands, self.promises, lambda _: 5.0, now)
            if rank == 0
            else Follower(store, rank, self.promises, self._check, now)
        )

    def _call_at(self, num_steps: int) -> None:
        self.boundary_at = num_steps
        self.between()  # the training thread may do anything between the call and the look

    def _check(self, _: CommandRecord) -> None:
        if self.refuses:
            raise CommandRefusedError(self.refuses)

    @property
    def is_called(self) -> bool:
        return bool(self.paused_at) or self.num_steps >= self.boundary_at

    def begin(self) -> None:
        """The pre-hook; a paused thread looks for commands again and again."""
        if not self.is_called:
            self.is_inside = True
            return
        self.is_busy = True
        while (promise := self.promises.due()) is not None:
            promise.decision = promise.decision or self.store.write_once(promise.register, ABORT)
            self.promises.keep(promise)
            if promise.decision == COMMIT:
                self.carry_out(promise)
        self.promises.call_for_next()
        self.is_busy = False
        self.is_inside = not self.paused_at

    def carry_out(self, promise: Promise) -> None:
        action = promise.record.action
        self.log.append((promise.record.reason, self.num_steps + 1))
        self.paused_at = {"pause": self.num_steps + 1, "resume": 0}.get(action, self.paused_at)
        if promise.command is not None:
            self.commands.finish(promise.command, "applied", step=self.num_steps + 1)

    def end(self) -> None:
        """The post-hook."""
        if self.is_inside:
            self.num_steps, self.is_inside = self.num_steps + 1, False


class World:
    """Three ranks that train in step: none is more than one step ahead."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.is_nested = False
        store = SharedStore()
        self.ranks = [Rank(store, rank, lambda: self.now, self.between) for rank in range(3)]
        self.given: list[Command] = []

    def between(self) -> None:
        if not self.is_nested:
            self.is_nested = True
            for _ in range(self.random.randrange(4)):
                rank = self.random.choice(self.ranks)
                if not rank.is_busy and (
                    rank.is_inside or not rank.is_called
                ):  # else it waits for the lock that the caller holds
                    self.train(rank)
            self.is_nested = False

    def train(self, rank: Rank) -> None:
        if not rank.is_inside:
            rank.begin()
        elif all(rank.num_steps <= other.num_steps for other in self.ranks):
            rank.end()

    def go(self, num: int, pace: float) -> None:
        for _ in range(num):
            self.now += 0.01
            rank = self.random.choice(self.ranks)
            if self.random.random() < pace:
                self.train(rank)
            else:
                rank.part.round()

    def give(self, action: str) -> Command:
        name = f"{action} {len(self.given)}"
        command = self.ranks[0].commands.submit(action, source="api", factor=0.5, reason=name)
        self.given.append(command)
        return command


@pytest.mark.parametrize("seed", range(150))
def test_a_command_takes_effect_at_one_step_on_all_ranks_or_on_none(seed: int) -> None:
    """Whatever the order of steps, rounds and commands, pauses among them; each command has an outcome."""
    world = World(seed)
    for _ in range(6):
        world.go(world.random.randrange(40, 300), world.random.choice([0.2, 0.6, 0.95]))
        world.give(world.random.choice(["reduce", "reduce", "pause", "resume", "checkpoint"]))
    world.go(3000, 0.5)
    if any(rank.paused_at for rank in world.ranks):
        world.give("resume")
        world.go(3000, 0.5)
    logs = [rank.log for rank in world.ranks]
    assert logs[0] == logs[1] == logs[2]
    applied = [command.record.reason for command in world.given if command.status == "applied"]
    assert [name for name, _ in logs[0]] == applied
    assert {command.status for command in world.given} <= {"applied", "rejected"}
    assert applied


def test_the_training_goes_on_where_nothing_is_pending() -> None:
    """Nobody asks the store anything at a step without a fence."""
    world = World(0)
    world.go(500, 0.5)
    for rank in world.ranks:
        rank.store = None  # type: ignore[assignment]
    world.go(500, 1.0)
    assert min(rank.num_steps for rank in world.ranks) > 50


def test_a_rank_that_refuses_rejects_for_all() -> None:
    """With its own words, and at once."""
    world = World(1)
    world.ranks[2].refuses = "this run has no checkpoint function"
    world.go(100, 0.5)
    command = world.give("checkpoint")
    world.go(300, 0.5)
    assert (command.status, command.record.message) == ("rejected", "rank 2: this run has no checkpoint function")
    assert [rank.log for rank in world.ranks] == [[], [], []]


def test_a_rank_that_is_not_attached_is_named() -> None:
    """First the leader waits for it, then it says who is missing, and refuses at once from then on."""
    world = World(2)
    world.ranks[1].part.round = lambda: None  # type: ignore[method-assign]
    command = world.give("reduce")
    world.go(100, 0.5)
    assert command.status == "pending"
    world.now += MEMBER_SECONDS
    world.go(100, 0.5)
    expected = (
        "rank 1 has not attached: a change without them would split the ranks; call monitor.attach on every rank, "
        "with optimizers of the same names and in the same order"
    )
    assert command.record.message == expected
    assert world.ranks[0].part.objection(command.record) == expected


def test_a_rank_that_does_not_answer_costs_the_command() -> None:
    """After a time; and what it hears later of the command it does not do."""
    world = World(3)
    world.go(200, 0.5)
    silent = world.ranks[2]
    ours, silent.part.round = silent.part.round, lambda: None  # type: ignore[method-assign]
    command = world.give("reduce")
    world.go(30, 0.0)
    world.now += VOTE_SECONDS
    world.go(300, 0.3)
    assert command.status == "rejected"
    assert command.record.message == f"rank 2 has not answered within {VOTE_SECONDS:g} s"
    silent.part.round = ours  # type: ignore[method-assign]
    world.go(1000, 0.5)
    assert [rank.log for rank in world.ranks] == [[], [], []]
    again = world.give("reduce")
    world.go(1000, 0.5)
    assert again.status == "applied"


def test_a_promise_that_rank_0_itself_cannot_make_costs_one_attempt() -> None:
    """The others wait for the next command under its number."""
    world = World(7)
    world.go(300, 0.5)
    leader, make, refused = world.ranks[0], world.ranks[0].promises.make, [True]
    leader.promises.make = lambda promise: False if refused and refused.pop() else make(promise)  # type: ignore[method-assign]
    first = world.give("reduce")
    world.go(1500, 0.5)
    second = world.give("reduce")
    world.go(1500, 0.5)
    assert (first.status, second.status) == ("applied", "applied")


def test_a_rank_that_leaves_decides_against_what_it_has_promised() -> None:
    """It will not ask at the fence; so nobody else may find it decided there."""
    world = World(6)
    world.go(200, 0.5)
    command = world.give("reduce")
    world.ranks[0].part.round()
    world.ranks[1].part.round()
    assert world.ranks[1].promises.undecided()
    world.ranks[1].part.close()
    world.ranks[1].promises.drop_all()
    world.ranks[2].part.round()
    world.ranks[0].part.round()
    assert command.status == "pending"
    assert not any(promise.decision == COMMIT for promise in world.ranks[0].promises._waiting)


def test_a_run_that_ends_first_decides_against() -> None:
    """What is undecided takes effect nowhere."""
    world = World(4)
    world.go(200, 0.5)
    command = world.give("reduce")
    for _ in range(3):
        world.ranks[0].part.round()
    assert isinstance(world.ranks[0].part, Leader)
    world.ranks[0].part.close()
    assert command.status == "expired"
    world.go(1000, 0.5)
    assert [rank.log for rank in world.ranks] == [[], [], []]


@pytest.mark.parametrize("is_pending", [False, True])
def test_the_others_leave_the_store_alone_once_the_leader_has_ended(is_pending: bool) -> None:
    """It may go with the leader's process: asked then, torch's client would write of it into the script's stderr."""
    world = World(5)
    world.go(200, 0.5)
    if is_pending:
        world.give("reduce")
        world.ranks[0].part.round()
        world.ranks[1].part.round()
    leader, *followers = (rank.part for rank in world.ranks)
    assert isinstance(leader, Leader)
    assert [part.is_over for part in followers] == [False, False]
    leader.close()
    for _ in range(2):
        for part in followers:
            part.round()
    assert [part.is_over for part in followers] == [True, True]
    assert not any(rank.promises.undecided() for rank in world.ranks)


def test_a_follower_names_the_run_that_the_leader_has_become() -> None:
    """It continues an earlier one by load_state_dict; that it was to be another is known to nobody."""
    world = World(6)
    world.go(300, 0.5)
    world.ranks[0].run_id = "earlier"
    world.go(300, 0.5)
    assert "send it to rank 0's run, earlier, and" in str(world.ranks[1].part.objection(world.give("reduce").record))


def test_a_register_that_cannot_be_read_is_asked_once() -> None:
    """Whatever stands there: the training thread is not kept with it at each step."""
    ranks = Ranks(
        lambda: "run",
        Commands(lambda _: None, on_waiting=lambda: None, on_finished=lambda _: None),
        check_effect=lambda _: None,
        num_steps=lambda: 10,
        call_at=lambda _: None,
        own_state=dict,
        take_stack=lambda _: False,
        on_error=lambda _: None,
    )
    record = World(7).give("reduce").record
    assert ranks._promises.make(Promise("register", 12, record))
    ranks._num_steps = ranks._promises._num_steps = lambda: 11  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("monitor.control._ranks.world", lambda: (2, 1))
        patch.setattr(ranks, "_ask", json.loads)
        with pytest.raises(ValueError, match="Expecting value"):
            ranks.take()
        assert ranks.take() is None


def promised(world: World) -> Command:
    """Give a command that all ranks have promised and that is decided; no step is made meanwhile."""
    world.go(200, 0.5)
    command = world.give("reduce")
    world.go(40, 0.0)
    assert command.status == "pending"
    return command


@pytest.mark.parametrize("is_decided", [True, False])
def test_a_follower_whose_store_has_failed_does_nothing_twice(is_decided: bool) -> None:
    """It begins anew, between its promise and the step; what it reads again it has promised already."""
    world = World(8)
    world.go(200, 0.5)
    command, rank = world.give("reduce"), world.ranks[1]
    world.ranks[0].part.round()
    rank.part.round()
    if is_decided:
        world.go(40, 0.0)
    rank.part = Follower(rank.store, 1, rank.promises, rank._check, lambda: world.now)
    rank.part.round()
    world.go(1000, 0.5)
    assert command.status == "applied"
    assert [len(one.log) for one in world.ranks] == [1, 1, 1]


def test_a_follower_that_begins_anew_leaves_what_was_decided_before() -> None:
    """The process group was destroyed and made again before the step, over the same store: nobody obeys."""
    world = World(9)
    promised(world)
    for rank in world.ranks:
        rank.promises.drop_all()
    for number in (1, 2):
        rank = world.ranks[number]
        rank.part = Follower(rank.store, number, rank.promises, rank._check, lambda: world.now)
        rank.part.round()
    first = world.ranks[0]
    first.part = Leader(first.store, 3, lambda: "run", first.commands, first.promises, lambda _: 5.0, lambda: world.now)
    world.go(1000, 0.5)
    assert [rank.log for rank in world.ranks] == [[], [], []]
