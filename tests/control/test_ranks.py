"""One rank among several: what it does where the store of the process group fails or stands still."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from monitor.control import Stacks, _rank_stacks, _ranks
from monitor.control._agreement import OVER
from monitor.control._commands import Commands
from monitor.control._ranks import RETRY_SECONDS, SILENT_SECONDS, Ranks
from tests.control.test_rank_states import Store


class World:
    """Rank 0 of two, whose thread makes a round when it is told to."""

    def __init__(self) -> None:
        self.now, self.errors = 100.0, list[str]()
        self.ranks = Ranks(
            lambda: "run",
            Commands(lambda _: None, on_waiting=lambda: None, on_finished=lambda _: None),
            check_effect=lambda _: None,
            num_steps=lambda: 10,
            call_at=lambda _: None,
            own_state=lambda: {"host": "a", "step": 10, "step_time": 0.1, "loss": 2.0, "url": ""},
            take_stack=self._take_stack,
            on_error=lambda error: self.errors.append(str(error)),
            clock=lambda: self.now,
        )
        self.ranks.enter(["SGD"])
        self.ranks.look()

    def _take_stack(self, then: Callable[[str], object]) -> bool:
        then("a stack")
        return True

    def pass_time(self, seconds: float, *, is_answered: bool = True) -> int:
        """Let the time pass, and return how many ranks are known at the end."""
        for _ in range(int(seconds)):
            self.now += 1.0
            if is_answered and self.ranks._loop is not None:
                try:
                    self.ranks._round()
                except RuntimeError as error:
                    self.ranks._fail(error)
            self.ranks.look()
        return len(self.ranks.readings)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def world(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(_ranks, "Loop", Idle)
    monkeypatch.setattr(_ranks, "world", lambda: (2, 0))
    monkeypatch.setattr(_ranks, "open_stores", lambda _: (store, store))
    world = World()
    yield world
    world.ranks.close()


class Idle:
    """A thread that is never started."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def start(self) -> None: ...

    def wake(self) -> None: ...

    def end(self) -> None: ...

    def stop(self, _: float) -> bool:
        return True

    is_alive = False

    def join(self, _: float) -> None: ...


def test_a_store_that_stands_still_is_told_once_and_nothing_is_known_meanwhile(world: World) -> None:
    """The thread hangs in it; what it knew before is old. It is told again the next time."""
    assert world.pass_time(5) == 2
    assert world.pass_time(SILENT_SECONDS, is_answered=False) == 2
    assert world.pass_time(5 * SILENT_SECONDS, is_answered=False) == 0
    assert world.errors == ["no answer for 10 s"]
    assert world.pass_time(2) == 2
    world.pass_time(2 * SILENT_SECONDS, is_answered=False)
    assert world.errors == ["no answer for 10 s"] * 2


def test_a_store_that_fails_ends_the_states_until_it_answers(
    world: World, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands and states come back together."""

    def fail(_: list[str]) -> list[Any]:
        raise RuntimeError("Connection reset by peer")

    assert world.pass_time(2) == 2
    with monkeypatch.context() as patch:
        patch.setattr(store, "get_all", fail)
        assert world.pass_time(1) == 0
    assert world.errors == ["Connection reset by peer"]
    assert world.pass_time(RETRY_SECONDS + 2) == 2


def test_a_file_is_not_filled_with_states(world: World, store: Store) -> None:
    """A store that keeps everything gets no news; commands go through it all the same."""
    world.ranks._fail(RuntimeError("again"))
    store.takes_news, before = False, set(store.values)
    assert world.pass_time(RETRY_SECONDS + 2) == 0
    assert world.ranks._part is not None
    assert not any("/state/" in key for key in set(store.values) - before)


def test_a_file_is_not_filled_with_stacks(world: World, store: Store) -> None:
    """Rank 0 tells its own, and waits for no others."""
    world.ranks._fail(RuntimeError("again"))
    store.takes_news = False
    world.pass_time(RETRY_SECONDS + 2)
    assert world.ranks.gather_stacks("own") == Stacks({0: "own"}, (), 2)
    assert not any("/stack" in key for key in store.values)


@pytest.mark.parametrize("end", [lambda ranks: ranks._fail(RuntimeError("gone")), lambda ranks: ranks.close()])
def test_who_gathers_stacks_is_let_go_where_no_more_come(
    end: Callable[[Ranks], None], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store fails, or the run ends."""
    monkeypatch.setattr(_rank_stacks, "GATHER_SECONDS", 60.0)
    world.pass_time(1)
    found: list[Stacks] = []
    thread = threading.Thread(target=lambda: found.append(world.ranks.gather_stacks("own")))
    thread.start()
    stacks = world.ranks._stacks
    assert isinstance(stacks, _rank_stacks.StackQuestions)
    while stacks._request is None:
        time.sleep(0.001)
    end(world.ranks)
    thread.join(30.0)
    assert found == [Stacks({0: "own"}, [1], 2)]


def test_a_rank_answers_where_rank_0_asks(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread, at the next round."""
    monkeypatch.setattr(_ranks, "Loop", Idle)
    monkeypatch.setattr(_ranks, "world", lambda: (2, 1))
    monkeypatch.setattr(_ranks, "open_stores", lambda _: (store, store))
    store.values.update({"session": '"s"', "s/stacks": "3"})
    world = World()
    world.pass_time(3)
    assert store.get("s/stack/1") == [3, "a stack"]
    assert world.ranks.gather_stacks("own") == Stacks({1: "own"}, (), 2)
    world.ranks.close()


def test_the_table_goes_with_the_process_group(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that trains on alone has no ranks."""
    assert world.pass_time(2) == 2
    monkeypatch.setattr(_ranks, "world", lambda: (1, 0))
    assert world.pass_time(1) == 0


def test_a_group_that_is_made_anew_with_others_is_noticed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two looks the old one went and the new one came; the table is that of the new one, at once."""
    assert world.pass_time(2) == 2
    monkeypatch.setattr(_ranks, "world", lambda: (3, 0))
    assert world.pass_time(2) == 3
    assert world.errors == []


def test_a_rank_whose_group_was_destroyed_says_that_it_takes_part_no_more(
    world: World, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else rank 0, which may train on, would take it for lost."""
    monkeypatch.setattr(_ranks, "world", lambda: (2, 1))
    store.values["session"] = '"s"'
    other = World()
    other.pass_time(3)
    monkeypatch.setattr(_ranks, "world", lambda: (1, 0))
    other.ranks._say_last()  # as the thread does when it ends
    assert store.get("s/state/1")["is_over"]
    other.ranks.close()


def test_a_process_that_stood_still_itself_does_not_blame_the_store(world: World) -> None:
    """After SIGSTOP it is chance which thread is the first to look."""
    assert world.pass_time(2) == 2
    world.now += 60.0
    world.ranks.look()
    assert world.errors == []
    assert world.pass_time(2) == 2


def test_a_rank_that_trains_on_after_rank_0_s_run_has_ended_misses_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread has ended: that the store is asked no more is no failure of the store. Commands are refused."""
    monkeypatch.setattr(_ranks, "Loop", Idle)
    monkeypatch.setattr(_ranks, "world", lambda: (2, 1))
    monkeypatch.setattr(_ranks, "open_stores", lambda _: (store, store))
    store.values.update({"session": '"s"', "s/leader": '"run-a"', "s/command/1": f'"{OVER}"'})
    world = World()
    world.pass_time(5 * SILENT_SECONDS)
    assert world.errors == []
    (why,) = {world.ranks.objection(None)}  # type: ignore[arg-type]
    assert why == "this is rank 1, and rank 0's run, run-a is over: no command takes effect any more"
    world.ranks.close()
