"""Programs that know nothing of the monitor, with MONITOR=1 and without: their weights are the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.auto.conftest import Done, Go

PROGRAMS = str(Path(__file__).with_name("programs.py"))


def printed(done: Done) -> dict[str, Any]:
    assert done.rc == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def assert_right(done: Done, truth: dict[str, list[float]], optimizer: str | None = None, number: int = 0) -> None:
    """Compare every step of a run, from the first one on, with what the program itself has worked out."""
    assert done.curve("loss", optimizer, number) == pytest.approx(truth["loss"], rel=1e-5)
    assert done.curve("gradient_norm", optimizer, number) == pytest.approx(truth["norm"], rel=1e-5)
    assert done.curve("lr_applied/0", optimizer, number) == pytest.approx(truth["lr"], rel=1e-6)


@pytest.mark.sliced(2)
@pytest.mark.parametrize("name", ["plain", "autocast", "accumulation", "lbfgs", "workers"])
def test_a_program_trains_as_ever_and_is_watched_from_its_first_step(go: Go, name: str) -> None:
    """Bit for bit the same weights, one run, and loss, norm and learning rate of each step."""
    without, done = go(PROGRAMS, name, monitor=None), go(PROGRAMS, name)
    assert without.runs == []
    assert printed(done) == printed(without)
    assert done.states == ["finished"]
    assert_right(done, printed(done)["truth"][0])


def test_a_clip_of_the_first_step_is_known(go: Go) -> None:
    """The threshold, and the factor, of the first clip as of every other."""
    done = go(PROGRAMS, "plain")
    norms = printed(done)["truth"][0]["norm"]
    assert done.curve("clip_threshold") == [0.5] * len(norms)
    assert done.curve("clip_factor") == pytest.approx([min(1.0, 0.5 / (norm + 1e-6)) for norm in norms], rel=1e-4)


def test_two_optimizers_are_one_run(go: Go) -> None:
    """That of the one that steps first, with each one's own loss, norm and learning rate."""
    without, done = go(PROGRAMS, "gan", monitor=None), go(PROGRAMS, "gan")
    assert printed(done) == printed(without)
    assert done.states == ["finished"]
    assert [one["key"] for one in done.final()["optimizers"]] == ["Adam-0", "Adam-1"]
    for key, truth in zip(("Adam-0", "Adam-1"), printed(done)["truth"], strict=True):
        assert_right(done, truth, key)


def test_a_first_step_that_the_scaler_skips_is_one_of_the_run(go: Go) -> None:
    """The run begins with it, and the step after it has its own figures."""
    without, done = go(PROGRAMS, "overflow", monitor=None), go(PROGRAMS, "overflow")
    assert printed(done) == printed(without)
    assert done.curve("is_skipped") == [1, *[0] * 11]
    truth = printed(done)["truth"][0]
    assert done.curve("loss")[1:] == pytest.approx(truth["loss"], rel=1e-5)
    assert done.curve("gradient_norm")[1:] == pytest.approx(truth["norm"], rel=1e-5)


@pytest.mark.parametrize("kept", ["", "1"])
def test_each_fold_is_a_run(go: Go, kept: str) -> None:
    """One ends when its optimizer is gone, or when another one over other parameters trains in its place."""
    without, done = go(PROGRAMS, "folds", monitor=None, KEEP=kept), go(PROGRAMS, "folds", KEEP=kept)
    assert printed(done) == printed(without)
    assert done.states == ["finished"] * 3
    assert [len(done.final(number)["optimizers"]) for number in range(3)] == [1, 1, 1]
    for number, truth in enumerate(printed(done)["truth"]):
        assert_right(done, truth, number=number)


def test_the_ranks_of_torchrun_are_one_run(go: Go) -> None:
    """Each process begins a run at its first step, the launcher none; rank 0's has loss and norm of all ranks."""
    words = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", PROGRAMS, "ddp")
    without, done = go(*words, monitor=None), go(*words)
    weights = [sorted(json.loads(line)["weights"] for line in one.out.splitlines()) for one in (without, done)]
    assert weights[0] == weights[1]
    assert done.states == ["finished"], done.err
    assert done.runs[0].world_size == 2
    assert_right(done, next(iter(truth for line in done.out.splitlines() for truth in json.loads(line)["truth"])))
