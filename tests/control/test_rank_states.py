"""How far each rank is: what ranks say in a store that they share, and what rank 0 makes of it."""

from __future__ import annotations

from typing import Any

import pytest

from monitor._records import RankReading
from monitor.control._rank_states import BEHIND_SECONDS, LOST_SECONDS, LOST_STEPS, MAX_READ, OwnState, RankTable
from tests.control.test_agreement import SharedStore


class Store(SharedStore):
    """A store that can be asked for several values; one that is not there would be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.num_read: list[int] = []
        self.takes_news = True

    def get_all(self, keys: list[str]) -> list[Any]:
        assert self.has(keys)
        self.num_read.append(len(keys))
        return [self.get(key) for key in keys]


class World:
    """Rank 0, and others that say how far they are once a second, all of them 10 steps a second."""

    def __init__(self, num_ranks: int, step_time: float = 0.1) -> None:
        self.now, self.store = 100.0, Store()
        self.steps, self.base_steps, self.step_time = [50] * num_ranks, [0] * num_ranks, step_time
        self.table = RankTable(self.store, num_ranks, lambda: "s", lambda: self.own(0), lambda: self.now)
        self.others = [self._other(rank) for rank in range(1, num_ranks)]

    def _other(self, rank: int) -> OwnState:
        return OwnState(self.store, rank, lambda: "s", lambda: self.own(rank), lambda: self.now)

    def own(self, rank: int) -> dict[str, Any]:
        made = self.steps[rank]
        figures = {"made": made, "step": self.base_steps[rank] + made, "step_time": self.step_time, "loss": 2.0 + rank}
        return {"run_id": f"run-{rank}", "host": f"host-{rank}", "url": "", **figures}

    def live(self, seconds: float, *, silent: tuple[int, ...] = (), reads: bool = True) -> list[str]:
        """Let the time pass, and return the state of each rank."""
        for _ in range(int(seconds)):
            self.now += 1.0
            for rank, one in enumerate(self.others, 1):
                if rank not in silent:
                    one.round()
            if reads:
                self.table.round()
        return [one.state for one in self.table.readings]


def test_rank_0_knows_of_each_rank_what_it_says_of_itself() -> None:
    """Its own row needs no store; the age of a word is that since rank 0 read it."""
    world = World(2)
    world.live(1)
    assert world.table.readings == (
        RankReading(0, "ok", "run-0", "host-0", 50, 0.1, 2.0, 0.0),
        RankReading(1, "ok", "run-1", "host-1", 50, 0.1, 3.0, 0.0),
    )


def test_a_rank_that_has_not_attached_is_listed_and_not_waited_for() -> None:
    """Nothing else is known of it, however long that lasts; once it attaches, it is a rank like the others."""
    world = World(3)
    assert world.live(2 * LOST_SECONDS, silent=(2,)) == ["ok", "ok", "not_attached"]
    assert world.table.readings[2] == RankReading(2)
    assert world.live(1) == ["ok", "ok", "ok"]


def test_a_rank_that_says_nothing_is_lost_and_comes_back() -> None:
    """Training that stands still is no silence: the thread of a rank that waits goes on."""
    world = World(3)
    assert world.live(2 * LOST_SECONDS) == ["ok", "ok", "ok"]
    assert world.live(LOST_SECONDS, silent=(2,)) == ["ok", "ok", "ok"]
    assert world.live(1, silent=(2,)) == ["ok", "ok", "lost"]
    assert world.table.readings[2].last_seen_seconds == LOST_SECONDS + 1
    assert world.live(1) == ["ok", "ok", "ok"]


def test_long_steps_make_for_more_patience() -> None:
    """A rank may be busy for a step or two without a thread of it getting its turn."""
    world = World(2, step_time=10.0)
    world.live(1)
    assert world.live(LOST_STEPS * 10, silent=(1,)) == ["ok", "ok"]
    assert world.live(1, silent=(1,)) == ["ok", "lost"]


def test_time_in_which_rank_0_itself_stood_still_is_not_held_against_the_others() -> None:
    """As after SIGSTOP: what the others say is news at the next round, or was not asked for."""
    world = World(2)
    world.live(1)
    world.live(10 * LOST_SECONDS, silent=(1,), reads=False)
    assert world.live(1, silent=(1,)) == ["ok", "ok"]


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_rank_that_is_steps_behind_is_told_apart(rank: int) -> None:
    """A word may be a second or two old: what is made in that time is not behind."""
    world, margin = World(3), int(BEHIND_SECONDS / 0.1)
    world.steps[rank] -= margin
    assert world.live(1) == ["ok", "ok", "ok"]
    world.steps[rank] -= 1
    assert world.live(1)[rank] == "behind"


def test_a_slow_rank_puts_no_other_one_behind() -> None:
    """How old a word may be is counted in steps of the first rank, not of the slowest."""
    world = World(3)
    world.steps[1] -= 10
    world.own = lambda rank, own=world.own: {**own(rank), "step_time": 5.0 if rank == 2 else 0.1}  # type: ignore[method-assign, misc]
    world.steps[2] = 4
    assert world.live(1) == ["ok", "ok", "behind"]


def test_what_another_version_says_is_not_taken() -> None:
    """It may lack what is needed, or have more."""
    world = World(3)
    world.store.set("s/state/1", {"step": 5})
    world.store.set("s/state/2", {**world.own(2), "number": 1, "is_over": False, "mood": "good"})
    assert world.live(1, silent=(1, 2)) == ["ok", "not_attached", "ok"]


def test_steps_of_an_earlier_session_put_no_rank_behind() -> None:
    """The script may continue rank 0's run alone: the others count their steps from 0."""
    world = World(2)
    world.base_steps[0] = 10_000
    assert world.live(1) == ["ok", "ok"]
    assert [one.step for one in world.table.readings] == [10_050, 50]


def test_a_rank_whose_run_has_ended_is_not_lost() -> None:
    """It has said so."""
    world = World(2)
    world.live(1)
    world.others[0].close()
    assert world.live(2 * LOST_SECONDS, silent=(1,)) == ["ok", "ended"]


def test_many_ranks_are_read_in_turns() -> None:
    """A round stays cheap; a rank that is seldom read is lost only after it was read a few times."""
    world = World(20 * MAX_READ + 1)
    world.live(20)
    assert set(world.store.num_read) == {MAX_READ}
    assert {one.state for one in world.table.readings} == {"ok"}
    world.live(59, silent=(7,))
    assert world.table.readings[7].state == "ok"
    world.live(41, silent=(7,))
    assert [one.rank for one in world.table.readings if one.state == "lost"] == [7]


def test_nothing_is_said_before_there_is_a_leader() -> None:
    """There is no key to say it under."""
    store = Store()
    one = OwnState(store, 1, lambda: "", dict, lambda: 5.0)
    one.round()
    one.close()
    assert store.values == {}
