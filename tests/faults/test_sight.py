"""What trains is seen, or a word says that it is not."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import monitor
from tests.faults.loops import watch


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.ones(3))


def captures(run: monitor.Run) -> list[str]:
    assert run.flush(30)
    return [event.message for event in run.events() if event.kind == "capture"]


# ------------------------------------------------------------------------------------------------ what is attached


class Sharp(torch.optim.Optimizer):
    """Sharpness-aware, in two calls: another optimizer over the same parameters makes the updates."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})
        self.base_optimizer = torch.optim.SGD(self.param_groups, lr=lr)
        self.param_groups = self.base_optimizer.param_groups

    def first_step(self) -> None:
        self.zero_grad()

    def second_step(self) -> None:
        self.base_optimizer.step()
        self.zero_grad()

    def step(self, closure: Any = None) -> None:
        raise NotImplementedError


def test_the_optimizer_inside_another_is_watched(tmp_path: Path) -> None:
    """It makes the steps; its loss is that of the second pass, and a command reaches it."""
    weight = parameter()
    optimizer = Sharp([weight], 0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    with watch(optimizer, tmp_path, scheduler) as run:
        command = run.reduce_lr(0.5)
        weight.sum().backward()
        optimizer.first_step()
        (weight * 2).sum().backward()
        optimizer.second_step()
        assert run.flush(30)
        assert (run.step, run.snapshot().optimizers[0].loss, command.status) == (1, 6.0, "applied")
        assert torch.equal(weight.detach(), torch.full((3,), 1 - 0.1 * 0.5 * 2))


class Halves(torch.optim.Optimizer):
    """Two optimizers, each for a part of the parameters."""

    def __init__(self, first: nn.Parameter, second: nn.Parameter) -> None:
        super().__init__([first, second], {"lr": 0.1})
        self.one, self.other = torch.optim.SGD([first], lr=0.1), torch.optim.SGD([second], lr=0.1)

    def step(self, closure: Any = None) -> None:
        self.one.step()
        self.other.step()


def test_an_optimizer_of_several_parts_is_watched_itself(tmp_path: Path) -> None:
    """None of its parts is the whole."""
    first, second = parameter(), parameter()
    optimizer = Halves(first, second)
    with watch(optimizer, tmp_path) as run:
        (first + second).sum().backward()
        optimizer.step()
        assert run.flush(30)
        assert [(one.key, one.steps) for one in run.snapshot().optimizers] == [("Halves", 1)]


class Bare(torch.optim.Optimizer):
    """Skips ``Optimizer.__init__`` on purpose."""

    def __init__(self, weight: nn.Parameter, has_hooks: bool) -> None:
        self.param_groups, self.state = [{"params": [weight], "lr": 0.1}], collections.defaultdict(dict)
        if has_hooks:
            self._optimizer_step_pre_hooks: Any = collections.OrderedDict()
            self._optimizer_step_post_hooks: Any = collections.OrderedDict()

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.data.add_(p.grad, alpha=-group["lr"])


@pytest.mark.parametrize("has_hooks", [False, True])
def test_an_optimizer_that_skips_its_parents_init_is_watched(has_hooks: bool, tmp_path: Path) -> None:
    """From the first step on, under a command too; class and object are as before when the run is over."""
    weight = parameter()
    optimizer = Bare(weight, has_hooks)
    before, step = set(vars(optimizer)), vars(Bare)["step"]
    with watch(optimizer, tmp_path) as run:
        run.set_lr_factor(0.5)
        weight.sum().backward()
        optimizer.step()
        assert run.flush(30)
        assert (run.step, run.snapshot().optimizers[0].loss) == (1, 3.0)
        assert torch.allclose(weight.detach(), torch.full((3,), 0.95))
    assert set(vars(optimizer)) == before
    assert vars(Bare)["step"] is step


@pytest.mark.parametrize(
    ("kinds", "names"),
    [
        ([torch.optim.SGD, torch.optim.Adam], ["SGD", "Adam"]),
        ([torch.optim.SGD, torch.optim.SGD], ["SGD-0", "SGD-1"]),
    ],
)
def test_a_list_of_optimizers(kinds: list[Any], names: list[str], tmp_path: Path) -> None:
    """They go by their class where that tells them apart, else by class and place."""
    optimizers = [kind([parameter()], lr=0.1) for kind in kinds]
    with watch(optimizers, tmp_path) as run:
        assert [one.key for one in run.snapshot().optimizers] == names


# ------------------------------------------------------------------------------------------------- what is not seen


def train(weight: nn.Parameter, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        weight.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_an_optimizer_that_was_made_anew_is_named(tmp_path: Path) -> None:
    """The attached one makes no step; one event and one line say which does, and no more follow."""
    weight = parameter()
    attached = torch.optim.SGD([weight], lr=0.01)
    with watch(attached, tmp_path) as run:
        train(weight, torch.optim.Adam([weight], lr=0.01), 15)
        assert captures(run) == []
        remade = torch.optim.Adam([weight], lr=0.01)
        train(weight, remade, 40)
        (message,) = captures(run)
        assert "SGD.step() was not called" in message
        assert "an optimizer made later (Adam) holds the same parameters; attach that one" in message
        train(weight, remade, 40)
        assert len(captures(run)) == 1


def test_another_object_that_trains_is_hinted_at(tmp_path: Path) -> None:
    """One that was made before, and passes that reach nothing attached."""
    weight, other = parameter(), parameter()
    trains, attached = (torch.optim.SGD([weight], lr=0.01) for _ in range(2))
    with watch(attached, tmp_path) as run:
        train(weight, trains, 30)
        (message,) = captures(run)
        assert "something else makes the updates; attach the torch optimizer whose step() is called" in message
    with watch(attached, tmp_path) as run:
        train(other, torch.optim.SGD([other], lr=0.01), 100)
        (message,) = captures(run)
        assert "backward passes have reached no parameter of SGD" in message


def test_who_accumulates_or_skips_is_not_blind(tmp_path: Path) -> None:
    """Many micro-batches, bad batches thrown away now and then, and two optimizers of which one rests."""
    weight, resting = parameter(), parameter()
    optimizer, rests = torch.optim.SGD([weight], lr=0.01), torch.optim.SGD([resting], lr=0.01)
    with watch({"works": optimizer, "rests": rests}, tmp_path) as run:
        for _ in range(300):
            (weight.sum() + resting.sum()).backward()
        optimizer.step()
        for i in range(100):
            optimizer.zero_grad()
            rests.zero_grad()
            (weight.sum() + resting.sum()).backward()
            if i % 10 == 0:
                optimizer.step()
        assert captures(run) == []


def test_who_puts_gradients_aside_is_not_blind(tmp_path: Path) -> None:
    """One gradient for each of many samples, zeroed and put together by hand before each step."""
    weight = parameter()
    optimizer = torch.optim.SGD([weight], lr=0.01)
    with watch(optimizer, tmp_path) as run:
        for _ in range(9):  # fewer steps than it takes to say that their losses are not known
            total = torch.zeros(3)
            for _ in range(100):
                weight.square().sum().backward()
                total += weight.grad.clamp(-1, 1)
                optimizer.zero_grad()
                assert captures(run) == []
            weight.grad = total
            optimizer.step()
            optimizer.zero_grad()
        assert captures(run) == []


# --------------------------------------------------------------------------------------------------- skipped steps


def test_skipped_steps_of_a_fused_optimizer_are_not_counted(tmp_path: Path) -> None:
    """They go by the number of the step before, on the page, in run.step and for what is logged after them."""
    weight = parameter()
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    with watch(optimizer, tmp_path) as run:
        for factor in (1.0, float("inf"), 1.0, float("inf"), 1.0):
            scaler.scale(weight.sum() * factor).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        assert run.flush(30)
        snapshot = run.snapshot().optimizers[0]
        assert (run.step, snapshot.steps, snapshot.global_step) == (3, 3, 3)
        assert snapshot.skipped_steps == {"amp_overflow": 2}
        assert run.reduce_lr(0.5).status == "pending"
        weight.sum().backward()
        optimizer.step()
        assert run.flush(30)
        (audit,) = (event for event in run.events() if event.kind == "control")
        assert audit.step == 4
