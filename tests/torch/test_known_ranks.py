"""Rank 0's run knows its ranks: real ones that train, end and stand still."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stack.real_prometheus import free_port
from tests.torch.test_agreeing import of_one


@pytest.fixture
def by_tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the ranks share a store that is served, as with torchrun."""
    monkeypatch.setenv("MEET", f"tcp://127.0.0.1:{free_port()}")


@pytest.mark.usefixtures("by_tcp")
def test_rank_0_knows_how_far_each_rank_is(tmp_path: Path) -> None:
    """Step, step time and loss of both; the other one knows of none. A rank that has ended its run is not lost."""
    (first, leader), (second, follower) = ends = of_one("known", 2, tmp_path)
    assert (first, second) == (0, 0), ends
    assert follower["ranks"] == [[], []]
    own, other = leader["ranks"][0]
    assert [own["run_id"], other["run_id"]] == [leader["run_id"], follower["run_id"]]
    for rank, one in enumerate((own, other)):
        assert (one["rank"], one["state"]) == (rank, "ok")
        assert 150 < one["step"] <= 260
        assert one["step_time"] > 0.02
        assert one["loss"] > 0.0
        assert one["host"]
    assert own["loss"] != other["loss"]
    assert other["last_seen_seconds"] < 10.0
    assert [one["state"] for one in leader["ranks"][1]] == ["ok", "ended"]


def test_a_store_that_is_a_file_is_not_filled(tmp_path: Path) -> None:
    """It keeps all that was ever written: no rank says there how far it is."""
    (first, leader), (second, _) = ends = of_one("known", 2, tmp_path)
    assert (first, second) == (0, 0), ends
    assert leader["ranks"] == [[], []]


@pytest.mark.usefixtures("by_tcp")
def test_a_rank_that_is_stopped_is_lost_and_comes_back(tmp_path: Path) -> None:
    """One event with a start and an end, though the training of rank 0 stands still meanwhile."""
    (first, leader), (second, follower) = ends = of_one("silent", 2, tmp_path)
    assert (first, second) == (0, 0), ends
    (start, end) = leader["lost"]
    assert start[:2] == [1, True]
    assert end[:2] == [1, False]
    assert "is back at step" in end[2]
    assert follower["lost"] == []


@pytest.mark.usefixtures("by_tcp")
@pytest.mark.parametrize("world", [2, 4])
def test_on_a_stall_rank_0_tells_where_every_rank_stands(world: int, tmp_path: Path) -> None:
    """One rank hangs in a function of its own, the others in the reduction of the gradients; one that is stopped does
    not answer, and is not waited for."""
    ends = of_one("hanging", world, tmp_path)
    assert [status for status, _ in ends] == [0] * world, ends
    ((message, details),) = ends[0][1]["told"]
    stacks = {tuple(one["ranks"]): one["stack"] for one in details["stacks"]}
    waiting = (0,) if world == 2 else (0, 3)
    assert set(stacks) == {(1,), waiting}
    assert "in stand_in_a_named_function\n" in stacks[1,]
    assert "in backward\n" in stacks[waiting]
    assert details["silent"] == ([] if world == 2 else [2])
    assert "rank 1 is in " in message
    assert "stand_in_a_named_function (agreeing_ranks.py:" in message
    assert message.endswith("rank 2 has not answered") == (world == 4)
