"""Real models, really in trouble: each kind of trouble is reported on a live run, and its onset is right."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import monitor

STEPS = 1200
BAD = 800


class Task:
    """Regression of a smooth function by a small network, fresh noise at every step."""

    def __init__(self, seed: int = 0, lr: float = 3e-3) -> None:
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
        self.opt = torch.optim.Adam(self.net.parameters(), lr=lr)

    def batch(self, size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(size, 8)
        return x, torch.sin(x.sum(1, keepdim=True)) + 0.1 * torch.randn(size, 1)

    def step(self, x: torch.Tensor, y: torch.Tensor) -> None:
        loss = (self.net(x) - y).pow(2).mean()
        loss.backward()
        self.opt.step()
        self.opt.zero_grad()


def events_of(train: Callable[[Task, monitor.Run], None], **settings: Any) -> list[monitor.Event]:
    """Train under the monitor and return the detectors' events, in order."""
    task = Task()
    with monitor.attach(task.opt, serve=False, gpu=False, linger=0, **settings) as run:
        train(task, run)
        assert run.flush(60)
        assert run.snapshot().errors == {}
        assert run.snapshot().dropped_steps == 0
        return [e for e in run.events() if e.kind not in ("state", "control")]


def kinds(events: list[monitor.Event]) -> set[str]:
    return {e.kind for e in events}


def test_ten_poisoned_batches_are_a_spike() -> None:
    """Ten batches with wrong targets: one spike, its onset at the first of them, over once the loss is back."""

    def train(task: Task, run: monitor.Run) -> None:
        for i in range(1, STEPS + 1):
            x, y = task.batch()
            task.step(x, y + 4.0 if BAD <= i < BAD + 10 else y)

    events = events_of(train)
    spikes = [e for e in events if e.kind == "spike"]
    assert spikes[0].start_step == BAD
    assert BAD <= spikes[0].step <= BAD + 10
    assert any(e.end_step is not None for e in spikes)
    assert "nonfinite" not in kinds(events)


def test_one_poisoned_batch_is_an_outlier() -> None:
    """A single bad batch is told from a spike: counted, for information."""

    def train(task: Task, run: monitor.Run) -> None:
        for i in range(1, STEPS + 1):
            x, y = task.batch()
            loss = (task.net(x) - (y + 30.0 if i == BAD else y)).pow(2).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(task.net.parameters(), 0.1)
            task.opt.step()
            task.opt.zero_grad()

    events = events_of(train)
    # Both are true here, and said: nearly every step is clipped, and the loss has come to its floor.
    events = [e for e in events if e.kind not in ("clipping_saturated", "plateau")]
    assert kinds(events) == {"outlier"}
    assert {e.severity for e in events} == {"info"}
    assert BAD in [e.start_step for e in events]


def test_a_raised_learning_rate_diverges() -> None:
    """The LR raised a thousandfold mid-run: divergence is raised, with its onset where the LR went up, and stays."""

    def train(task: Task, run: monitor.Run) -> None:
        for i in range(1, STEPS + 1):
            if i == BAD:
                task.opt.param_groups[0]["lr"] = 3.0
            task.step(*task.batch())

    events = events_of(train)
    divergence = next(e for e in events if e.kind == "divergence")
    assert BAD <= divergence.start_step <= BAD + 3
    assert divergence.severity == "critical"
    assert divergence.message.startswith("loss rose from")


def test_nan_is_raised_at_its_first_step() -> None:
    """The first NaN loss is reported at that very step, with the last good one named."""

    def train(task: Task, run: monitor.Run) -> None:
        for i in range(1, BAD + 50):
            x, y = task.batch()
            task.step(x, y * math.nan if i == BAD else y)

    nonfinite = next(e for e in events_of(train) if e.kind == "nonfinite")
    assert (nonfinite.step, nonfinite.start_step, nonfinite.severity) == (BAD, BAD, "critical")
    assert f"last good step {BAD - 1}" in nonfinite.message


def test_a_model_that_cannot_learn_plateaus() -> None:
    """Targets that are pure noise: after the bias is learnt there is no progress, and the LR is not at its end."""

    def train(task: Task, run: monitor.Run) -> None:
        for _ in range(6000):
            x, _ = task.batch(16)
            task.step(x, 3.0 + torch.randn(16, 1))

    assert "plateau" in kinds(events_of(train))


def test_a_classifier_that_learns_nothing_is_told_by_its_number_of_classes() -> None:
    """Ten classes, and a learning rate that moves nothing: known before step 100, without any setting."""
    torch.manual_seed(0)
    net = nn.Linear(8, 10)
    nn.init.zeros_(net.weight)
    opt = torch.optim.SGD(net.parameters(), lr=1e-6)
    with monitor.attach(opt, serve=False, gpu=False, linger=0) as run:
        for i in range(90):
            nn.functional.cross_entropy(net(torch.randn(32, 8)), torch.randint(10, (32,))).backward()
            opt.step()
            opt.zero_grad()
            if i == 10:
                assert run.flush(60)
        assert run.flush(60)
        (plateau,) = (event for event in run.events() if event.kind == "plateau")
    assert "as that of a model that only guesses" in plateau.message


def test_memorising_overfits() -> None:
    """A large network on 24 noisy samples: validation loss turns while the training loss keeps falling."""
    torch.manual_seed(0)
    x, y = torch.randn(24, 8), torch.randn(24, 1)
    held_x, held_y = torch.randn(256, 8), torch.randn(256, 1)
    net = nn.Sequential(nn.Linear(8, 256), nn.ReLU(), nn.Linear(256, 1))
    opt = torch.optim.Adam(net.parameters(), lr=3e-3)
    with monitor.attach(opt, serve=False, gpu=False, linger=0) as run:
        for i in range(1, 1001):
            loss = (net(x) - y).pow(2).mean()
            loss.backward()
            opt.step()
            opt.zero_grad()
            if i % 10 == 0:
                with torch.no_grad():
                    run.log(val_loss=(net(held_x) - held_y).pow(2).mean())
        run.flush(60)
        events = [e for e in run.events() if e.kind == "overfit"]
    assert events
    assert events[0].severity == "warning"


def test_a_frozen_loss_is_stuck() -> None:
    """A loss that is the same to the last bit for 50 steps is reported."""

    def train(task: Task, run: monitor.Run) -> None:
        x, y = task.batch()
        task.opt.param_groups[0]["lr"] = 0.0
        for _ in range(80):
            task.step(x, y)

    assert "stuck" in kinds(events_of(train))


def test_a_stall_is_raised_by_the_clock_and_ended_by_a_step() -> None:
    """No step for longer than the time-out: raised while nothing happens, over with the next step."""
    import threading

    raised = threading.Event()

    def on_event(event: monitor.Event) -> None:
        if event.kind == "stall" and (event.step, event.end_step) == (5, None):  # an earlier one: the machine is busy
            raised.set()

    def train(task: Task, run: monitor.Run) -> None:
        for _ in range(5):
            task.step(*task.batch())
        assert raised.wait(60)
        task.step(*task.batch())

    events = [e for e in events_of(train, stall_timeout=0.5, on_event=on_event) if e.kind == "stall"]
    assert [e.end_step for e in events[-2:]] == [None, 6]
    assert events[-2].id == events[-1].id


def test_an_announced_change_is_no_spike() -> None:
    """A new batch size is announced by logging it: the noisier loss that follows raises no alarm at once."""

    def train(task: Task, run: monitor.Run) -> None:
        run.log(batch_size=64)
        for i in range(1, BAD + 40):
            if i == BAD:
                run.log(batch_size=4)
            x, y = task.batch(64)
            task.step(x, y if i < BAD else y + 3.0)

    assert "spike" not in kinds(events_of(train))


def test_detector_state_survives_a_restart() -> None:
    """state_dict carries level, best and step: a spike right after the restart is seen, not missed in a warm-up."""
    task = Task()
    with monitor.attach(task.opt, serve=False, gpu=False, linger=0) as run:
        for _ in range(400):
            task.step(*task.batch())
        saved = run.state_dict()
    with monitor.attach(task.opt, serve=False, gpu=False, linger=0) as run:
        run.load_state_dict(saved)
        assert run.step == 400
        for i in range(30):
            x, y = task.batch()
            task.step(x, y + 4.0 if 5 <= i < 25 else y)
        run.flush(60)
        spikes = [e for e in run.events() if e.kind == "spike"]
        assert spikes[0].start_step == 406
        assert run.snapshot().optimizers[0].loss_best == pytest.approx(saved["smoothing"]["Adam"]["best"], rel=0.1)
        assert run.snapshot().optimizers[0].global_step == 430


def test_a_state_of_another_make_is_refused() -> None:
    """load_state_dict says what it was given."""
    task = Task()
    with (
        monitor.attach(task.opt, serve=False, gpu=False, linger=0) as run,
        pytest.raises(ValueError, match=r"not what run.state_dict\(\) returns"),
    ):
        run.load_state_dict({"epoch": 3})
