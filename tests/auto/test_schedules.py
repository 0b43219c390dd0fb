"""The number of steps, as a scheduler tells it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from monitor.auto._schedules import SchedulePace

Make = Callable[[torch.optim.Optimizer], list[Any]]


def warm_up(optimizer: torch.optim.Optimizer) -> list[Any]:
    """Return a schedule of two and its parts, which torch makes first."""
    parts = [lr_scheduler.LinearLR(optimizer), lr_scheduler.CosineAnnealingLR(optimizer, 80)]
    return [*parts, lr_scheduler.SequentialLR(optimizer, parts, [10])]


def constant(_: int, num_training_steps: int = 0) -> float:
    return 1.0


@pytest.mark.parametrize(
    ("make", "num_per_step", "total"),
    [
        (lambda o: [lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=70)], 1, 70),
        (lambda o: [lr_scheduler.CosineAnnealingLR(o, 80)], 1, 80),
        (lambda o: [lr_scheduler.PolynomialLR(o, 50)], 1, 50),
        (lambda o: [lr_scheduler.CosineAnnealingLR(o, 80)], 0.25, None),
        (lambda o: [lr_scheduler.CosineAnnealingLR(o, 80)], 2, None),
        (warm_up, 1, 90),
        (lambda o: [lr_scheduler.LambdaLR(o, partial(constant, num_training_steps=60))], 1, 60),
        (lambda o: [lr_scheduler.LambdaLR(o, constant)], 1, None),
        (lambda o: [lr_scheduler.StepLR(o, 5)], 1, None),
        (lambda o: [], 1, None),
    ],
)
def test_a_schedule_tells_the_steps_if_it_goes_with_them(make: Make, num_per_step: float, total: int | None) -> None:
    """Stepped once for each step of the optimizer, and only then."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    schedulers = make(optimizer)
    pace = SchedulePace([weakref.ref(one) for one in schedulers])
    assert pace.total_steps(0, 0) is None
    for number in range(1, 9):
        optimizer.step()
        for _ in range(int(number * num_per_step) - int((number - 1) * num_per_step)):
            for scheduler in schedulers[-1:]:
                scheduler.step()
    assert pace.total_steps(8, 8) == total


def test_a_training_that_is_resumed_counts_what_is_left() -> None:
    """The run's own number of the step, and the rest of the schedule."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 80)
    for _ in range(30):
        optimizer.step()
        scheduler.step()
    pace = SchedulePace([weakref.ref(scheduler)])
    pace.total_steps(0, 0)
    optimizer.step()
    scheduler.step()
    assert pace.total_steps(1, 1) == 50
    assert pace.total_steps(2, 2) is None  # the scheduler has stood still
    del scheduler
    assert pace.total_steps(3, 3) is None
