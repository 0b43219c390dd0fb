"""Commands on real ranks: each takes effect at the same step on every rank, or on none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def ranks(case: str, world: int, folder: Path) -> list[tuple[int, Any]]:
    """Return the exit status of each rank of a group, and what it has printed."""
    started = [
        subprocess.Popen(
            [
                sys.executable,
                "-W",
                "ignore",
                "-m",
                "tests.torch.agreeing_ranks",
                *map(str, (rank, world, folder, case)),
            ],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "MONITOR_DIR": str(folder / "runs")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        ends = [one.communicate(timeout=200) for one in started]
    finally:
        for one in started:
            one.kill()
    return [
        (one.returncode, json.loads(output.splitlines()[-1]) if output else errors[-3000:])
        for one, (output, errors) in zip(started, ends, strict=True)
    ]


@pytest.mark.parametrize(("case", "world"), [("data parallel", 4), ("sharded", 2), ("redundancy free", 2)])
def test_commands_take_effect_at_the_same_step_on_every_rank(case: str, world: int, tmp_path: Path) -> None:
    """Nine commands, a pause and a stop among them; the weights are those of a learning rate written by hand."""
    ends = ranks(case, world, tmp_path)
    assert [status for status, _ in ends] == [0] * world, ends
    found = [one for _, one in ends]
    assert found[0]["outcomes"] == [[action, "applied"] for action, _ in found[0]["steps"]]
    assert len(found[0]["outcomes"]) == 9
    for one in found:
        assert one["steps"] == found[0]["steps"]
        assert one["saved"] == found[0]["saved"]
        assert len(one["saved"]) == 1
        assert one["is_equal"]


def test_ranks_that_are_missing_or_follow_refuse(tmp_path: Path) -> None:
    """The leader names who has not attached, before and after it knows; a follower names the leader's run, and lets
    the script that all ranks run give its command."""
    (_, leader), (_, absent), (_, follower) = ends = ranks("refusals", 3, tmp_path)
    missing = "rank 1 has not attached: a change without them would split the ranks; call monitor.attach on every rank"
    assert [status for status, _ in ends] == [0, 0, 0], ends
    assert leader == {"own": ["rejected", missing], "words": [missing, missing], "lrs": [0.1]}
    assert absent == {}
    assert follower["own"] == ["rejected", "rank 0's command holds for all ranks"]
    assert follower["words"][0] == follower["own"][1]
    assert follower["words"][1].startswith("this is rank 2: send it to rank 0's run, agreeing_ranks-")
    assert follower["lrs"] == [0.1]


def test_a_rank_that_stands_still_splits_nothing(tmp_path: Path) -> None:
    """It is stopped for a second around each command."""
    (first, leader), (second, follower) = ends = ranks("stopped", 2, tmp_path)
    assert (first, second) == (0, 0), ends
    assert leader["steps"] == follower["steps"]
    assert len(leader["steps"]) >= 4


def test_two_runs_that_are_open_at_once_each_obey_their_own_commands(tmp_path: Path) -> None:
    """As of a GAN that attaches its optimizers one by one: a command for one run changes no other one on any rank."""
    (first, leader), (second, follower) = ends = ranks("two runs", 2, tmp_path)
    assert (first, second) == (0, 0), ends
    assert leader["factors"] == [0.5, 0.25]
    assert follower == leader


def test_the_others_ask_the_store_no_more_once_rank_0_has_ended_its_run(tmp_path: Path) -> None:
    """Their thread ends: the store may go with rank 0's process."""
    ends = ranks("leaves first", 2, tmp_path)
    assert ends == [(0, {"before": True, "after": False})] * 2, ends


def test_a_rank_that_is_killed_leaves_the_others_to_their_own_error(tmp_path: Path) -> None:
    """The others hear of it from torch, as without the monitor, and end."""
    *others, (status, _) = ranks("killed", 2, tmp_path)
    assert status < 0
    assert [(status, one["error"]) for status, one in others] == [(0, "RuntimeError")]
