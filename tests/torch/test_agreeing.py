"""Commands on real ranks: each takes effect at the same step on every rank, or on none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.stack.real_prometheus import free_port


def ranks(cases: str, world: int, folder: Path) -> list[tuple[int, Any]]:
    """Return the exit status of each rank of a group, and what it has found in each case; or the end of its errors."""
    started = [
        subprocess.Popen(
            [
                sys.executable,
                "-W",
                "ignore",
                "-m",
                "tests.torch.agreeing_ranks",
                *map(str, (rank, world, folder, cases)),
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
            one.wait()
    for rank, (one, (_, errors)) in enumerate(zip(started, ends, strict=True)):
        if one.returncode:
            print(f"rank {rank} ended with {one.returncode}:\n{errors[-6000:]}")  # pytest shows it with a failure
    return [
        (one.returncode, json.loads(output.splitlines()[-1]) if output else errors[-3000:])
        for one, (output, errors) in zip(started, ends, strict=True)
    ]


def of_one(case: str, world: int, folder: Path) -> list[tuple[int, Any]]:
    """As ranks, for one case."""
    return [(status, found if isinstance(found, str) else found[0]) for status, found in ranks(case, world, folder)]


@pytest.mark.parametrize(
    ("layouts", "world"),
    [
        (["data parallel", "hybrid"], 4),
        (["accumulating", "joined", "redundancy free", "sharded", "tensor parallel", "pipelined"], 2),
    ],
    ids=["4 ranks", "2 ranks"],
)
def test_commands_take_effect_at_the_same_step_on_every_rank(layouts: list[str], world: int, tmp_path: Path) -> None:
    """Nine commands, a pause and a stop among them; the weights are those of a learning rate written by hand."""
    ends = ranks(", ".join(layouts), world, tmp_path)
    assert [status for status, _ in ends] == [0] * world, ends
    for layout, *found in zip(layouts, *(one for _, one in ends), strict=True):
        outcomes = found[0]["outcomes"]
        assert outcomes == [[action, "applied"] for action, _ in found[0]["steps"]], layout
        assert len(outcomes) == 9, layout
        for one in found:
            assert one["steps"] == found[0]["steps"], layout
            assert one["saved"] == found[0]["saved"], layout
            assert len(one["saved"]) == 1, layout
            assert one["is_equal"], layout


def test_ranks_that_are_missing_or_follow_refuse(tmp_path: Path) -> None:
    """The leader names who has not attached, before and after it knows; a follower names the leader's run, and lets
    the script that all ranks run give its command."""
    (_, leader), (_, absent), (_, follower) = ends = of_one("refusals", 3, tmp_path)
    missing = (
        "rank 1 has not attached: a change without them would split the ranks; call monitor.attach on every rank, "
        "with optimizers of the same names and in the same order"
    )
    assert [status for status, _ in ends] == [0, 0, 0], ends
    assert leader == {"own": ["rejected", missing], "words": [missing, missing], "lrs": [0.1]}
    assert absent == {}
    assert follower["own"] == ["rejected", "rank 0's command holds for all ranks"]
    assert follower["words"][0] == follower["own"][1]
    assert follower["words"][1].startswith("this is rank 2: send it to rank 0's run, agreeing_ranks-")
    assert follower["lrs"] == [0.1]


def test_a_rank_that_runs_out_of_batches_first_splits_nothing(tmp_path: Path) -> None:
    """It waits in torch's Join and makes no step; what it is told then cannot take effect there, and need not."""
    (first, leader), (second, follower) = ends = of_one("uneven", 2, tmp_path)
    assert (first, second) == (0, 0), ends
    assert (leader["step"], follower["step"]) == (400, 460)
    assert follower["changes"]
    assert leader["changes"] == [[step, factor] for step, factor in follower["changes"] if step <= 400]
    assert leader["is_equal"]
    assert follower["is_equal"]


@pytest.mark.sliced(2)
@pytest.mark.parametrize("form", ["process", "thread"])
def test_commands_need_no_gloo_and_no_group_at_attach(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with NCCL alone: the ranks talk through the store. The group is made later, which the run then says of itself,
    and destroyed before the end."""
    monkeypatch.setenv("MONITOR_WATCHER", form)
    (first, leader), (second, follower) = ends = of_one("without gloo", 2, tmp_path)
    assert (first, second) == (0, 0), ends
    assert [leader.pop("ranks"), follower.pop("ranks")] == [[2, 0, 0], [2, 1, 1]]
    assert leader == follower
    assert leader["factors"] == [0.5, 0.25]


def test_two_runs_that_are_open_at_once_each_obey_their_own_commands(tmp_path: Path) -> None:
    """As of a GAN that attaches its optimizers one by one: a command for one run changes no other one on any rank."""
    (first, leader), (second, follower) = ends = of_one("two runs", 2, tmp_path)
    assert (first, second) == (0, 0), ends
    assert leader["factors"] == [0.5, 0.25]
    assert follower == leader


def test_the_others_ask_the_store_no_more_once_rank_0_has_ended_its_run(tmp_path: Path) -> None:
    """Their thread ends: the store may go with rank 0's process."""
    ends = of_one("leaves first", 2, tmp_path)
    assert ends == [(0, {"before": True, "after": False})] * 2, ends


def test_a_rank_that_stands_still_in_any_phase_of_a_command_splits_nothing(tmp_path: Path) -> None:
    """`STOP_SECONDS=5` has each of the five stops take longer than the ranks wait for a vote."""
    (first, leader), (second, follower) = ends = of_one("stopped in each phase", 2, tmp_path)
    assert (first, second) == (0, 0), ends
    assert leader["steps"] == follower["steps"]
    assert leader["weights"] == follower["weights"]
    assert leader["outcomes"].count("applied") == len(leader["steps"]) >= 4


@pytest.mark.sliced(2)
@pytest.mark.parametrize("phase", ["asked", "seen", "promised", "committed", "due"])
def test_a_rank_that_is_killed_leaves_the_others_to_their_own_error(
    phase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others hear of it from torch, as without the monitor, and end; also where the store died with rank 0."""
    monkeypatch.setenv("MEET", f"tcp://127.0.0.1:{free_port()}")
    ends = of_one(phase, 2, tmp_path)
    killed = 0 if phase in ("asked", "committed") else 1
    assert ends[killed][0] == -signal.SIGKILL, ends
    assert ends[1 - killed] == (0, {"error": "RuntimeError"}), ends
