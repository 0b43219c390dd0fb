"""What a run shows over HTTP once a command is applied: what is in force, not what was digested last."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.control.conftest import noting
from tests.server.real_run import Live

Attach = Callable[..., Live]


@pytest.fixture
def live(attach: Attach) -> Live:
    """A run whose recorder looks every 5 s, so that what it has digested is old."""
    live = attach(digest_interval=5, min_lr=0.03)
    live.optimizer.step()
    live.run.flush()
    return live


def rates(groups: list[dict[str, Any]]) -> list[tuple[float, float, float]]:
    return [(group["scheduled"], group["factor"], group["applied"]) for group in groups]


@pytest.mark.parametrize("where", ["/lr", "/run"])
def test_an_applied_command_shows_at_once(live: Live, where: str) -> None:
    """`monitor lr` and `monitor status` right after an outcome: the new factor, and back; the floor of min_lr holds."""

    def shown() -> list[tuple[float, float, float]]:
        document = live.get(where)
        return rates(document["groups"] if where == "/lr" else document["optimizers"][0]["groups"])

    assert shown() == [(0.1, 1.0, 0.1), (0.2, 1.0, 0.2)]
    for path, body, expected in (
        ("/lr/reduce", {"factor": 0.5}, [(0.1, 0.5, 0.05), (0.2, 0.5, 0.1)]),
        ("/lr/reduce", {"factor": 0.5, "groups": ["head"]}, [(0.1, 0.5, 0.05), (0.2, 0.25, 0.05)]),
        ("/lr/restore", {}, [(0.1, 1.0, 0.1), (0.2, 1.0, 0.2)]),
    ):
        accepted = live.send(path, body)
        live.optimizer.step()
        assert live.outcome(accepted)["status"] == "applied"
        assert shown() == expected
    assert live.get("/lr")["pending"] == []


def test_what_a_pause_lets_through_shows_before_the_next_step(live: Live) -> None:
    """A run that is told to pause is paused, and a reduction given meanwhile is in force, though no step is made."""
    pause = live.send("/pause", {})
    training = threading.Thread(target=live.optimizer.step)
    training.start()
    assert live.outcome(pause)["status"] == "applied"
    assert live.get("/run")["state"] == "paused"
    assert live.outcome(live.send("/lr/reduce", {"factor": 0.5}))["status"] == "applied"
    assert rates(live.get("/lr")["groups"]) == [(0.1, 0.5, 0.05), (0.2, 0.5, 0.1)]
    assert len(live.optimizer.used) == 1
    assert live.outcome(live.send("/resume", {}))["status"] == "applied"
    assert live.get("/run")["state"] == "running"
    training.join()
    assert live.optimizer.used[-1] == [0.05, 0.1]


def test_metrics_show_what_the_last_digested_step_used(live: Live) -> None:
    """The exported learning rate is that of an update that was made, never one that is yet to be."""
    live.send("/lr/reduce", {"factor": 0.5})
    assert [group.applied for group in live.run.snapshot().optimizers[0].groups] == [0.1, 0.2]
    live.optimizer.step()
    live.run.flush()
    assert [group.applied for group in live.run.snapshot().optimizers[0].groups] == [0.05, 0.1]


def test_the_floor_shows_where_the_schedule_has_fallen(attach: Attach) -> None:
    """A factor in force is shown with the floor that LR scaling applies; a schedule below it is left alone."""
    live = attach(noting(0.1, 0.02), digest_interval=5, min_lr=0.03)
    command = live.send("/lr/reduce", {"factor": 0.5, "groups": [0]})
    live.optimizer.step()
    live.optimizer.param_groups[0]["lr"] = 0.04
    live.optimizer.param_groups[1]["monitor_lr_factor"] = 0.5
    live.optimizer.step()
    live.run.flush()
    assert live.outcome(command)["status"] == "applied"
    assert rates(live.get("/lr")["groups"]) == [(0.04, 0.5, 0.03), (0.02, 0.5, 0.02)]
    undo = live.send("/lr/undo", {})
    live.optimizer.step()
    assert live.outcome(undo)["status"] == "applied"
    assert rates(live.get("/lr")["groups"]) == [(0.04, 1.0, 0.04), (0.02, 0.5, 0.02)]


def test_no_learning_rate_is_read_from_a_tensor(attach: Attach) -> None:
    """The factor is laid over the digested schedule: a request never waits for a device."""
    live = attach(noting(torch.tensor(0.5)), digest_interval=5)
    live.optimizer.step()
    live.run.flush()
    command = live.send("/lr/reduce", {"factor": 0.5})
    live.optimizer.step()
    assert live.outcome(command)["status"] == "applied"
    live.optimizer.param_groups[0]["lr"] = Unreadable()
    assert rates(live.get("/lr")["groups"]) == [(0.5, 0.5, 0.25)]
    live.optimizer.param_groups[0]["lr"] = 0.5


class Unreadable:
    """Stands for an LR whose reading would wait."""

    def __float__(self) -> float:
        raise AssertionError("the LR was read")


def test_a_group_that_has_gone_stays_as_it_was(live: Live) -> None:
    """What was digested of more groups than there are now is shown, and nothing breaks."""
    live.optimizer.param_groups[0]["monitor_lr_factor"] = 0.5
    del live.optimizer.param_groups[1]
    assert rates(live.get("/lr")["groups"]) == [(0.1, 0.5, 0.05), (0.2, 1.0, 0.2)]
