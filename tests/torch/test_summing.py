"""One run for all ranks: the loss and the norm of each step are those of the whole training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from monitor.store import list_runs
from tests.ranks.test_travel import wait_for
from tests.stack.real_prometheus import free_port

CASES = {
    2: ["data parallel", "accumulating", "redundancy free", "sharded", "sharded, unclipped", "flat", "tensor parallel"],
    4: ["data parallel", "hybrid", "sharded, unclipped"],
}


def found_by(world: int, cases: list[str], folder: Path, form: str) -> list[dict[str, Any]]:
    """Return what each rank of a group has found."""
    port = str(free_port())
    started = [
        subprocess.Popen(
            [
                sys.executable,
                "-W",
                "ignore",
                "-m",
                "tests.torch.summing_ranks",
                *map(str, (rank, world, port)),
                "; ".join(cases),
            ],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "MONITOR_DIR": str(folder / "runs"), "MONITOR_WATCHER": form},
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
    assert [one.returncode for one in started] == [0] * world, ends
    return [json.loads(output.splitlines()[-1]) for output, _ in ends]


def check(case: str, ranks: list[dict[str, Any]], world: int) -> None:
    leader = ranks[0][case]
    assert leader["loss"] == pytest.approx(leader["true_loss"], rel=1e-6), case
    assert leader["norm"] == pytest.approx(leader["true_norm"], rel=1e-5), case
    assert (leader["summed"], leader["incomplete"]) == (world, 0), case
    assert all(rank[case]["is_same"] for rank in ranks), case


@pytest.mark.parametrize("world", CASES, ids=lambda world: f"{world} ranks")
def test_the_run_has_the_loss_and_the_norm_of_all_ranks(world: int, tmp_path: Path) -> None:
    """At every step, from the first to the last, whatever the ranks share, and the weights are those of an unwatched
    training. One run is left in the folder for each training."""
    ranks = found_by(world, CASES[world], tmp_path, "process")
    for case in CASES[world]:
        check(case, ranks, world)
    expected = [(0, "finished")] * len(CASES[world])
    wait_for(lambda: [(run.rank, run.state) for run in list_runs(tmp_path / "runs")] == expected, "one run of each")


def test_a_pipeline_has_the_loss_of_its_last_stage_and_the_norm_of_all(tmp_path: Path) -> None:
    check("pipelined", found_by(2, ["pipelined"], tmp_path, "process"), 2)


def test_the_sums_are_there_where_the_watcher_is_on_threads(tmp_path: Path) -> None:
    check("data parallel", found_by(2, ["data parallel"], tmp_path, "thread"), 2)


def test_a_run_is_resumed_on_another_number_of_ranks(tmp_path: Path) -> None:
    """Four ranks, then two: one run, whose losses are the means over those that there are; the LR factor is in force on
    every rank."""
    before = [rank["save"] for rank in found_by(4, ["save"], tmp_path, "process")]
    after = [rank["resume"] for rank in found_by(2, ["resume"], tmp_path, "process")]
    assert [(one["step"], one["factors"]) for one in before] == [(40, [0.5])] * 4
    assert [(one["first"], one["step"], one["factors"]) for one in after] == [(40, 50, [0.5])] * 2
    assert after[0]["id"] == before[0]["id"]
    assert after[0]["steps"] == list(range(1, 51))
    assert after[0]["loss"][40:] == pytest.approx(after[0]["true_loss"], rel=1e-6)
    wait_for(lambda: [run.run_id for run in list_runs(tmp_path / "runs")] == [before[0]["id"]], "one run")


def test_a_rank_that_the_others_wait_for_is_told(tmp_path: Path) -> None:
    """By rank 0's run, which knows the own time of each rank; the event ends when nobody waits any more."""
    leader, follower = (rank["straggler"] for rank in found_by(2, ["straggler"], tmp_path, "thread"))
    assert leader["told"] == [["the other ranks wait for rank 1: ", True], ["the others wait no longer for ran", False]]
    assert leader["ranks"] == [[0, True], [1, True]]
    assert follower["ranks"] == []
