"""Sharded models on real processes: nothing of ours communicates, and each norm that is shown is the whole one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

Found = dict[str, Any]
GROUPS = {1: ("all",), 2: ("one", "all"), 4: ("some", "all")}
FSDP = "sharded by FullyShardedDataParallel"
WHOLE = {
    1: ["fully_shard", "tensors", "flat"],
    2: ["replicated", "tensors in part", "data", "flat NO_SHARD True", "flat NO_SHARD False"],
    4: ["data"],
}
ABSENT = {
    2: {
        "fully_shard, no_clip": "sharded over 2 ranks",
        "fully_shard, by_extreme": "sharded over 2 ranks",
        "fully_shard, by_value": "sharded over 2 ranks",
        "fully_shard, by_halves": "sharded over 2 ranks",
        "in part, no_clip": "sharded over 2 ranks",
        "in part, by_value": "sharded over 2 ranks",
        "tensors, no_clip": "partial sums over 2 ranks",
        "tensors in part, no_clip": "sharded over 2 ranks",
        **{f"flat FULL_SHARD {keeps}, {clip}": FSDP for keeps in (True, False) for clip in ("no_clip", "by_norm")},
    },
    4: {"hybrid, no_clip": "sharded over 2 ranks", "two dimensions, no_clip": "sharded over 4 ranks"},
}


@pytest.fixture(scope="module", params=GROUPS, ids=lambda world: f"{world} ranks")
def group(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    """Return what each rank of a group has found: a group that hangs is ended by its own time limit, and fails."""
    return ended("sharded_ranks", request.param, tmp_path_factory.mktemp("group"))


def ended(module: str, world: int, folder: Path) -> list[Any]:
    """Return what each rank of a group has printed."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", f"tests.torch.{module}", str(rank), str(world), str(folder)],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "MONITOR_DIR": str(folder / "runs")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    ends = [one.communicate(timeout=200) for one in ranks]
    assert [one.returncode for one in ranks] == [0] * world, ends
    return [json.loads(output.splitlines()[-1]) for output, _ in ends]


def test_micro_batches_that_are_not_synchronized_count(tmp_path: Path) -> None:
    """Those of FullyShardedDataParallel on two ranks, which leave no trace in the gradients until the last one."""
    for rank in ended("no_sync_ranks", 2, tmp_path):
        for expected, shown in rank:
            assert shown == pytest.approx(expected)


def cases_of(found: Found) -> dict[str, Found]:
    return {name: case for name, case in found.items() if name != "status"}


def looks(group: list[Found]) -> list[tuple[str, float, Found]]:
    """Return every look of a rank that was watched: case, true norm, and what was seen."""
    return [
        (name, case["true"], case[who])
        for found in group
        for name, case in cases_of(found).items()
        for who in GROUPS[len(group)]
        if "norm" in case[who]
    ]


def test_watched_and_unwatched_ranks_communicate_and_train_alike(group: list[Found]) -> None:
    """Attached on one rank, on some or on all, with every stride: the same collectives in the same order on each rank
    as with nobody watching, and the same weights to the last bit."""
    differing = [
        (rank, name, who)
        for rank, found in enumerate(group)
        for name, case in cases_of(found).items()
        for who in GROUPS[len(group)]
        if not case[who]["is_same"]
    ]
    assert differing == []
    assert len(group) == 1 or any(case["communicates"] for case in cases_of(group[0]).values())


def test_a_norm_that_is_shown_is_that_of_the_whole_gradient(group: list[Found]) -> None:
    """Whatever is shown, on whatever rank, is the norm of one model's gradient on all batches."""
    shown = [(name, seen["norm"], true) for name, true, seen in looks(group) if seen["norm"] is not None]
    assert [norm for _, norm, _ in shown] == pytest.approx([true for *_, true in shown], rel=1e-5)


def test_a_norm_is_shown_where_one_rank_holds_everything_or_the_clip_has_it(group: list[Found]) -> None:
    """What is not shown has a reason, and it is left out nowhere else."""
    absent = {name: seen["reason"] for name, _, seen in looks(group) if seen["norm"] is None}
    assert absent == ABSENT.get(len(group), {})
    whole = {name.partition(",")[0] for name, _, seen in looks(group) if seen["norm"] is not None}
    assert whole >= set(WHOLE[len(group)])


def test_a_norm_clip_of_sharded_gradients_shows_its_factor(group: list[Found]) -> None:
    """The factor is threshold by global norm on each rank, by torch's function, by hand or by FSDP's own method."""
    clips = [
        (seen["clips"], true)
        for name, true, seen in looks(group)
        if name.endswith((", by_norm", ", by_hand", ", by_its_method")) and seen["norm"] is not None
    ]
    assert [clip for (clip,), _ in clips] == [
        ["norm", True, pytest.approx(0.01 / (true + 1e-6), rel=1e-5)] for _, true in clips
    ]
    assert clips


def test_a_clip_whose_measure_other_ranks_hold_is_neither_taken_nor_not(group: list[Found]) -> None:
    """By value, or by the infinity norm, a shard alone does not show whether the clip took effect."""
    expected = {"by_value": [["value", None, None]], "by_extreme": [["norm", None, None]]}
    for name, _, seen in looks(group):
        kind, _, clip = name.partition(", ")
        if kind == "fully_shard" and clip in expected and len(group) > 1:
            assert seen["clips"] == expected[clip]


def test_status_says_whose_loss_it_is_and_why_there_is_no_norm(group: list[Found]) -> None:
    """``monitor status`` of rank 0, with and without other ranks."""
    lines = {line[:15].strip(): line[15:].strip() for line in group[0]["status"]}
    world = len(group)
    assert (f"on rank 0 of {world}" in lines["loss"]) == (world > 1)
    assert (lines["gradient norm"] == f"-, sharded over {world} ranks") == (world > 1)
