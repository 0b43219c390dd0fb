"""Rank 0 asks all ranks for their stacks, and reads what is there: no rank waits for another one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from monitor.control import _rank_stacks
from monitor.control._rank_stacks import LOOK_SECONDS, MAX_ASKED, StackAnswers, StackQuestions
from monitor.control._stack_taker import MAX_STACK
from monitor.control._stacks import Stacks
from tests.control.test_agreement import SharedStore


class Store(SharedStore):
    """A store that counts what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[str] = []

    def set(self, key: str, value: object) -> None:
        self.written.append(key)
        super().set(key, value)


class World:
    """Rank 0 and others, whose threads make a round each time the clock moves."""

    def __init__(self, num_ranks: int) -> None:
        self.now, self.store, self.num_taken = 100.0, Store(), 0
        self.is_busy = set[int]()
        self.questions = StackQuestions(self.store, num_ranks, lambda: "s", lambda: self.now)
        self.others = {rank: self.other(rank) for rank in range(1, num_ranks)}

    def other(self, rank: int) -> StackAnswers:
        return StackAnswers(self.store, rank, lambda: "s", lambda then: self.take(rank, then), lambda: self.now)

    def take(self, rank: int, then: Callable[[str], object]) -> bool:
        if rank in self.is_busy:
            return False
        self.num_taken += 1
        then(f"stack of {'one' if rank == 1 else 'many'}")
        return True

    def gather(self, *, silent: tuple[int, ...] = (), seconds: float = 5.0) -> Stacks:
        """Gather on a thread, as the run does, while time passes for all."""
        found: list[Stacks] = []
        thread = threading.Thread(target=lambda: found.append(self.questions.gather("own")))
        thread.start()
        while self.questions._request is None and thread.is_alive():
            time.sleep(0.001)
        until = self.now + seconds
        while self.now < until:
            self.pass_time(silent)
        thread.join()
        return found[0]

    def pass_time(self, silent: tuple[int, ...] = ()) -> None:
        self.now += 0.05
        self.questions.round()
        for rank, one in self.others.items():
            if rank not in silent:
                one.round()


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_rank_stacks, "GATHER_SECONDS", 0.3)


def test_the_stacks_of_all_ranks_are_gathered_once() -> None:
    """Each rank is asked once, and answers once."""
    world = World(4)
    assert world.gather() == Stacks({0: "own", 1: "stack of one", 2: "stack of many", 3: "stack of many"}, [], 4)
    assert world.num_taken == 3
    assert sorted(world.store.written) == ["s/stack/1", "s/stack/2", "s/stack/3", "s/stacks"]


def test_a_rank_that_does_not_answer_is_named() -> None:
    """The others are there all the same."""
    stacks = World(4).gather(silent=(2,))
    assert (sorted(stacks.by_rank), stacks.silent) == ([0, 1, 3], [2])


def test_an_answer_to_an_earlier_question_is_not_taken_for_one() -> None:
    """It takes the place of the last one, so that a run that stalls often fills no store."""
    world = World(3)
    world.gather()
    num_keys = len(world.store.values)
    assert world.gather(silent=(1,)).silent == [1]
    assert world.gather().silent == []
    assert len(world.store.values) == num_keys


def test_a_rank_that_takes_its_stack_already_answers_later() -> None:
    """Its own run may have stalled at the same moment."""
    world = World(2)
    world.is_busy.add(1)
    assert world.gather(seconds=LOOK_SECONDS).silent == [1]
    world.is_busy.clear()
    for _ in range(40):
        world.pass_time()
    assert world.store.get("s/stack/1") == [1, "stack of one"]


def test_only_the_first_of_many_ranks_are_asked() -> None:
    """The store holds no more than their answers."""
    world = World(MAX_ASKED + 10)
    stacks = world.gather()
    assert sorted(stacks.by_rank) == list(range(MAX_ASKED))
    assert (stacks.silent, stacks.num_ranks) == ([], MAX_ASKED + 10)
    assert len(world.store.written) == MAX_ASKED


def test_nothing_is_asked_while_nobody_wants_it() -> None:
    """Rank 0 writes and reads nothing; the others look for one key a second."""
    world = World(2)
    asked: list[str] = []
    world.store.get = lambda key: asked.append(key)  # type: ignore[method-assign, func-returns-value]
    for _ in range(100):
        world.pass_time()
    assert world.store.written == []
    assert set(asked) == {"s/stacks"}
    assert 4 <= len(asked) <= 6


@pytest.mark.parametrize("is_early", [True, False])
def test_who_waits_is_let_go_at_the_end(is_early: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run, or of a store that fails; who comes after that waits for nothing."""
    monkeypatch.setattr(_rank_stacks, "GATHER_SECONDS", 60.0)
    world, found = World(2), list[Stacks]()
    if is_early:
        world.questions.close()
    thread = threading.Thread(target=lambda: found.append(world.questions.gather("own")), daemon=True)
    thread.start()
    if not is_early:
        while world.questions._request is None:
            time.sleep(0.001)
        world.questions.close()
    thread.join(30.0)
    assert found == [Stacks({0: "own"}, [1], 2)]


def test_what_rank_0_reads_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some times a second, while it waits; of an answer the end."""
    monkeypatch.setattr(_rank_stacks, "GATHER_SECONDS", 1.0)
    world, asked = World(2), list[str]()
    get = world.store.get
    world.store.get = lambda key: (asked.append(key), get(key))[1]  # type: ignore[method-assign, func-returns-value]
    world.gather(silent=(1,), seconds=10.0)
    assert len(asked) <= 41
    world.store.set("s/stack/1", [2, "a" * MAX_STACK + "b"])
    (stack,) = set(world.gather(silent=(1,)).by_rank.values()) - {"own"}
    assert stack == "a" * (MAX_STACK - 1) + "b"


def test_a_rank_without_a_leader_looks_nowhere() -> None:
    """There is no key to look under."""
    store = Store()
    one = StackAnswers(store, 1, lambda: "", lambda _: pytest.fail("nobody has asked"), lambda: 5.0)
    one.round()
    one.close()
    assert (store.values, store.written) == ({}, [])
