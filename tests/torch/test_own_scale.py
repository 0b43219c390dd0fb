"""Optimizers that scale their learning rate themselves: what is shown is what the update used."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from monitor import CommandRefusedError, Run
from monitor.cli._format import lr_table
from monitor.control._own_scale import own_scale
from monitor.export import Exporter
from monitor.server._json import encode

po = pytest.importorskip("pytorch_optimizer")
Attach = Callable[..., Run]
Used = Callable[[torch.Tensor, torch.Tensor, Any], float]


def lion(before: torch.Tensor, after: torch.Tensor, _: Any) -> float:
    """An update of Lion is the sign of something, times the LR."""
    return float((after - before).abs().max())


def prodigy(before: torch.Tensor, after: torch.Tensor, optimizer: Any) -> float:
    """An update of Prodigy is its average over the root of the other, which it has in its state."""
    (group,) = optimizer.param_groups
    state = optimizer.state[group["params"][0]]
    update = state["exp_avg"] / (state["exp_avg_sq"].sqrt() + group["d"] * group["eps"])
    return float(((before - after) / update).mean())


def schedule_free(before: torch.Tensor, after: torch.Tensor, optimizer: Any) -> float:
    """The sequence z of schedule-free SGD goes down by the LR times the gradient, which is 1 here."""
    z = optimizer.state[optimizer.param_groups[0]["params"][0]]["z"]
    used, optimizer.last_z = float((getattr(optimizer, "last_z", before) - z).mean()), z.clone()
    return used


CASES: dict[str, tuple[Callable[[Any], Any], Used]] = {
    "DAdaptLion": (lambda p: po.DAdaptLion([p], lr=2.0, d0=1e-3), lion),
    "Prodigy": (lambda p: po.Prodigy([p], lr=1.0, d0=1e-3), prodigy),
    "Prodigy, whole LR": (lambda p: po.Prodigy([p], lr=1, d0=1e-3), prodigy),
    "ScheduleFreeSGD": (lambda p: po.ScheduleFreeSGD([p], lr=0.1, warmup_steps=4), schedule_free),
}


@pytest.mark.parametrize("is_reduced", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_the_lr_shown_is_that_of_the_update(attach: Attach, name: str, is_reduced: bool) -> None:
    """Measured at the parameter, step by step, while the scale grows; factor x scheduled is applied."""
    make, used_in = CASES[name]
    parameter = torch.nn.Parameter(torch.full((3,), 4.0, dtype=torch.float64))
    optimizer = make(parameter)
    run = attach(optimizer, window=64)
    if is_reduced:
        run.reduce_lr(0.5)
    used, shown = [], []
    for _ in range(8):
        parameter.grad = torch.ones_like(parameter)
        before = parameter.detach().clone()
        optimizer.step()
        used.append(used_in(before, parameter.detach(), optimizer))
        run.flush()
        shown.append(run.snapshot().optimizers[0].groups[0])
    assert [group.applied for group in shown] == pytest.approx(used, rel=1e-5)
    assert len(set(used)) > 1
    factor = 0.5 if is_reduced else 1.0
    assert [group.factor * group.scheduled for group in shown] == pytest.approx([g.applied for g in shown], rel=1e-12)
    assert {group.factor for group in shown} == {factor}


def test_run_lr_is_that_of_the_next_update(attach: Attach) -> None:
    """As of now: with the scale that the group holds now."""
    optimizer = po.DAdaptLion([torch.nn.Parameter(torch.ones(2))], lr=0.5, d0=1e-3)
    run = attach(optimizer)
    for _ in range(5):
        optimizer.param_groups[0]["params"][0].grad = torch.ones(2)
        optimizer.step()
    run.set_lr_factor(0.25)
    optimizer.step()
    (group,) = optimizer.param_groups
    (row,) = run.lr
    assert (row.scheduled, row.factor) == (0.5 * group["d"], 0.25)
    assert row.applied == pytest.approx(0.25 * row.scheduled)


def test_a_change_is_told_in_the_lr_of_the_update(attach: Attach) -> None:
    """The audit entry has it with the scale; ``min_lr`` is a bound on the group's own ``lr``."""
    optimizer = po.DAdaptLion([torch.nn.Parameter(torch.ones(2))], lr=1.0, d0=1e-3)
    run = attach(optimizer, min_lr=0.1)
    optimizer.param_groups[0]["params"][0].grad = torch.ones(2)
    command = run.reduce_lr(0.5)
    optimizer.step()
    (change,) = command.record.changes
    assert (change.lr_before, change.lr_after) == (1e-3, 5e-4)
    with pytest.raises(CommandRefusedError, match=r"below min_lr=0\.1;"):
        run.set_lr_factor(0.05)


@pytest.mark.parametrize("is_relative", [False, True])
def test_an_lr_that_is_not_used_is_absent(attach: Attach, is_relative: bool) -> None:
    """None, or ignored by the optimizer: run.lr and the records hold None, and a command is refused."""
    lr = 1e-3 if is_relative else None
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = po.AdaFactor([parameter], lr=lr, relative_step=True)
    run = attach(optimizer)
    for _ in range(3):
        parameter.grad = torch.ones(2, 2)
        optimizer.step()
    run.flush()
    (group,) = run.snapshot().optimizers[0].groups
    assert (group.scheduled, group.applied, group.factor) == (None, None, 1.0)
    assert [(row.scheduled, row.factor, row.applied) for row in run.lr] == [(None, 1.0, None)]
    assert run.history()["optimizers"]["AdaFactor"]["lr"]["0"] == {"scheduled": [None] * 3, "applied": [None] * 3}
    with pytest.raises(CommandRefusedError, match="learning rate"):
        run.reduce_lr(0.5)


def test_an_absent_lr_has_no_metric_and_is_null_and_a_dash(attach: Attach) -> None:
    """Never NaN: the other series of the group are there."""
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = po.AdaFactor([parameter], lr=None)
    run = attach(optimizer)
    parameter.grad = torch.ones(2, 2)
    optimizer.step()
    run.flush()
    body, _ = Exporter(run.snapshot).render(None)
    names = {line.partition("{")[0] for line in body.decode().splitlines() if 'param_group="0"' in line}
    assert "training_learning_rate_factor" in names
    assert not names & {"training_learning_rate", "training_scheduled_learning_rate"}
    (group,) = json.loads(encode(run.snapshot()))["optimizers"][0]["groups"]
    assert (group["scheduled"], group["factor"], group["applied"]) == (None, 1.0, None)
    assert lr_table([{**group, "optimizer": "AdaFactor", "param_group": 0}])[1].split() == ["0", "-", "-", "1"]


def test_groups_that_share_an_lr_are_changed_together(attach: Attach) -> None:
    """Those that estimate a distance use one LR for all groups, and some raise where the groups differ in it."""
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))]} for _ in range(2)]
    run = attach(po.Prodigy(groups))
    with pytest.raises(CommandRefusedError, match="Prodigy uses one learning rate for all of its groups"):
        run.reduce_lr(0.5, groups=[1])
    run.reduce_lr(0.5, groups=[0, 1])
    run.reduce_lr(0.5)


def test_a_skipped_step_shows_the_scaled_lr(attach: Attach) -> None:
    """A step that the GradScaler leaves out is shown with the LR that it would have used."""
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = po.DAdaptLion([parameter], lr=0.5, d0=1e-3)
    run = attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scaler.scale((parameter * math.inf).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    run.flush()
    (snapshot,) = run.snapshot().optimizers
    assert (snapshot.skipped_steps["amp_overflow"], snapshot.groups[0].scheduled) == (1, 0.5e-3)


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ({"lr": 0.1}, 1.0),
        ({"lr": 0.1, "d": 4}, 1.0),  # a size, or whatever else is no estimate
        ({"lr": 0.1, "d": [0.5]}, 1.0),
        ({"lr": 0.1, "d": torch.tensor([0.5]), "d_coef": 1.0}, 0.5),
        ({"lr": 0.1, "d": torch.ones(3)}, 1.0),
        ({"lr": 0.1, "warmup_steps": 10}, 1.0),
        ({"lr": 0.1, "warmup_steps": 10, "lr_max": -1.0, "weight_sum": 0.0}, 0.1),
        ({"lr": 0.1, "warmup_steps": 10, "lr_max": -1.0, "weight_sum": 0.0, "k": 4}, 0.5),
        ({"lr": 0.1, "warmup_steps": 10, "lr_max": -1.0, "weight_sum": 0.0, "step": 99}, 1.0),
        ({"lr": 0.1, "warmup_steps": 0, "lr_max": -1.0, "weight_sum": 0.0}, 1.0),
        ({"lr": 0.1, "warmup_steps": 10, "lr_max": -1.0, "weight_sum": 0.0, "k": 4, "d": 0.5, "d_coef": 1.0}, 0.25),
        ({"lr": 0.1, "relative_step": False}, 1.0),
        ({"lr": 0.1, "relative_step": True}, None),
    ],
)
def test_the_table_of_keys(group: dict[str, Any], expected: float | None) -> None:
    """The keys that mean a scale, and those that only look like one."""
    assert own_scale(group) == expected


def test_the_d_of_torchs_adafactor_is_no_distance() -> None:
    """It is the threshold of its clipping: the LR is shown as it is, and groups may differ in their factors."""
    optimizer = torch.optim.Adafactor([torch.nn.Parameter(torch.ones(2))], lr=0.1, d=4.0)
    assert own_scale(optimizer.param_groups[0]) == 1.0
