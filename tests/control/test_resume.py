"""Save and resume: the factor and its ramp travel in the optimizer's own state, and hurt nobody without the monitor."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.control.resumed import SAVED_AT, STEPS, Training, begin

Weights = list[torch.Tensor]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run saved in mid-ramp and a run saved without the monitor, each gone on with in a new process."""
    home = tmp_path_factory.mktemp("saved")
    begin(home, is_watched=True, num_steps=SAVED_AT + 1)
    begin(home, is_watched=False, num_steps=SAVED_AT + 1)
    environment = {**os.environ, "MONITOR_DIR": str(home)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.control.resumed", str(home)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return home


@pytest.fixture(scope="module")
def ends(folder: Path) -> dict[str, Weights]:
    return torch.load(folder / "ends.pt", weights_only=True)


def same(first: Weights, second: Weights) -> bool:
    return all(map(torch.equal, first, second))


@pytest.mark.parametrize("way", ["before attach", "after attach"])
def test_a_run_resumed_in_mid_ramp_is_the_run_that_never_stopped(
    ends: dict[str, Weights], way: str, tmp_path: Path
) -> None:
    """Bit by bit, whether the state is loaded before attach or after it, read with weights_only=True."""
    assert same(ends[way], begin(tmp_path, is_watched=True, num_steps=STEPS))


def test_a_checkpoint_made_without_the_monitor_loads_under_it(ends: dict[str, Weights], tmp_path: Path) -> None:
    """No factor is in force, and the weights are those of a run that was never watched."""
    unwatched = begin(tmp_path, is_watched=False, num_steps=STEPS)
    assert same(ends["under the monitor"], unwatched)
    assert same(ends["without the monitor"], unwatched)


def test_a_checkpoint_made_under_the_monitor_loads_without_it(folder: Path, ends: dict[str, Weights]) -> None:
    """The factor lies in the groups and does nothing: from there on the schedule's own LR is used."""
    training = Training()
    training.load(folder / "watched.pt")
    assert training.optimizer.param_groups[0]["monitor_lr_factor"] < 1.0
    for group in training.optimizer.param_groups:
        group.pop("monitor_lr_factor")
        group.pop("monitor_lr_ramp", None)
    for i in range(SAVED_AT, STEPS):
        training.step(i)
    assert same(training.weights(), ends["with a factor and no monitor"])
    assert not same(training.weights(), ends["before attach"])


def test_what_is_saved_is_plain(folder: Path) -> None:
    """Numbers and a list of numbers: nothing that a loader must trust."""
    groups = torch.load(folder / "watched.pt", weights_only=True)["optimizer"]["param_groups"]
    assert type(groups[0]["monitor_lr_factor"]) is float
    first, last, steps, made = groups[0]["monitor_lr_ramp"]
    assert (first, last, steps, made) == (1.0, 0.1, 8, SAVED_AT - 2)
    assert "monitor_lr_ramp" not in groups[1]
