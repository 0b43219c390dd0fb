"""Whatever is asked, saved, loaded, added or raised, in whatever order: what a step uses is factor x schedule.

The sequences are those of one fixed seed, the same on every machine, so that a failure here is a failure everywhere;
``pytest tests/control/test_stateful.py --hypothesis-seed=N`` tries others.
"""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch.optim import Optimizer, lr_scheduler

import monitor
from tests.control.conftest import Noting, weights

FACTORS = st.floats(0.01, 1.0)
MAX_GROUPS = 4
SEED = 20261121


def warm_restarts(optimizer: Optimizer) -> lr_scheduler.LRScheduler:
    """A schedule that computes each LR from its base, 0 among them."""
    return lr_scheduler.LambdaLR(optimizer, lambda epoch: (0.0, 0.5, 1.0, 0.3, 1.2)[epoch % 5])


def in_three_parts(optimizer: Optimizer) -> lr_scheduler.LRScheduler:
    """Schedules one after the other; each continues from the LR that it finds in the param group."""
    parts = [
        lr_scheduler.LinearLR(optimizer, 0.1, total_iters=3),
        lr_scheduler.CosineAnnealingLR(optimizer, 4),
        lr_scheduler.ExponentialLR(optimizer, 0.5),
    ]
    return lr_scheduler.SequentialLR(optimizer, parts, [3, 7])


SCHEDULES: dict[str, Callable[[Optimizer], lr_scheduler.LRScheduler] | None] = {
    "assigned by hand": None,
    "LambdaLR": warm_restarts,
    "SequentialLR": in_three_parts,
}


@dataclass
class Group:
    """What a param group must be, in the words of the documentation."""

    factor: float = 1.0
    ramp: tuple[float, float, int, int] | None = None

    def step(self) -> float:
        """Return the factor that the coming step uses."""
        if self.ramp is not None:
            first, last, steps, made = self.ramp
            made += 1
            self.factor = last if made == steps else first * (last / first) ** (made / steps)
            self.ramp = None if made == steps else (first, last, steps, made)
        return self.factor

    def aim(self, target: float, over_steps: int) -> None:
        self.ramp = (self.factor, target, over_steps, 0) if over_steps > 1 and target != self.factor else None
        if self.ramp is None:
            self.factor = target


class Loop:
    """An optimizer and its schedule, as a training script holds them."""

    def __init__(self, lrs: list[Any], schedule: str) -> None:
        self.optimizer = Noting([{"params": [weights()], "lr": lr} for lr in lrs])
        build = SCHEDULES[schedule]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch's own, from within SequentialLR
            self.scheduler = build(self.optimizer) if build else None

    def scheduled(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def advance(self, decay: float) -> None:
        """Move the schedule on; one that is assigned by hand by a factor."""
        if self.scheduler is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of a schedule that moves before the first step
                self.scheduler.step()
            return
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].mul_(decay)
            else:
                group["lr"] *= decay

    def save(self) -> list[dict[str, Any]]:
        parts = [self.optimizer] if self.scheduler is None else [self.optimizer, self.scheduler]
        return [copy.deepcopy(part.state_dict()) for part in parts]

    def load(self, saved: list[dict[str, Any]]) -> None:
        self.optimizer.load_state_dict(saved[0])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(copy.deepcopy(saved[1]))


@dataclass
class Saved:
    """A checkpoint, that of the unwatched loop, and what the model was then."""

    watched: list[dict[str, Any]]
    unwatched: list[dict[str, Any]]
    groups: list[tuple[float, Any]]


@dataclass
class Asked:
    """A command that waits, and what it must do."""

    command: Any
    action: str
    factor: float | None = None
    groups: tuple[int, ...] | None = None
    over_steps: int = 0


class Control(RuleBasedStateMachine):
    """A run beside a model of it that knows nothing of how it works, and beside the same loop without the monitor,
    which says what the schedule asks for."""

    @initialize(
        is_tensor=st.booleans(),
        lrs=st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=2),
        schedule=st.sampled_from(sorted(SCHEDULES)),
        min_lr=st.just(0.0) | st.floats(1e-4, 0.5),
    )
    def begin(self, is_tensor: bool, lrs: list[float], schedule: str, min_lr: float) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.min_lr = min_lr
        self.make = torch.tensor if is_tensor else float
        self.watched = Loop([self.make(lr) for lr in lrs], schedule)
        self.unwatched = Loop([self.make(lr) for lr in lrs], schedule)
        self.optimizer = self.watched.optimizer
        quick: dict[str, Any] = {"serve": False, "gpu": False, "directory": self.folder.name, "linger": 0}
        self.run = monitor.attach(self.optimizer, self.watched.scheduler, min_lr=min_lr, **quick)
        self.groups = [Group() for _ in lrs]
        self.asked: list[Asked] = []
        self.undo: list[list[tuple[Group, float, Any]]] = []
        self.saved: Saved | None = None

    def teardown(self) -> None:
        if hasattr(self, "run"):
            self.run.close()
            assert self.run.snapshot().errors == {}
            self.folder.cleanup()

    # ---------------------------------------------------------------------------------------------- commands

    @rule(factor=FACTORS, over_steps=st.integers(0, 5), data=st.data(), action=st.sampled_from(["reduce", "set"]))
    def change(self, factor: float, over_steps: int, data: Any, action: str) -> None:
        groups = data.draw(st.none() | st.sets(st.integers(0, len(self.groups) - 1), min_size=1).map(sorted).map(tuple))
        submit = self.run.reduce_lr if action == "reduce" else self.run.set_lr_factor
        if self.is_too_low(action, factor, groups):
            with pytest.raises(monitor.CommandRefusedError, match=r"below min_lr="):
                submit(factor, groups, over_steps)
            return
        self.asked.append(Asked(submit(factor, groups, over_steps), action, factor, groups, over_steps))

    def is_too_low(self, action: str, factor: float | None, groups: tuple[int, ...] | None) -> bool:
        """Tell whether an LR above the floor would come below it; that of a tensor to the precision of its type."""
        if factor is None:
            return False
        floor = float(self.make(self.min_lr))
        rows = zip(self.unwatched.scheduled(), self.groups, strict=True)
        chosen = [row for i, row in enumerate(rows) if groups is None or i in groups]
        aims = [(lr, group.factor * factor if action == "reduce" else factor) for lr, group in chosen]
        return any(aim < 1.0 and lr * aim < floor <= lr for lr, aim in aims)

    @rule(over_steps=st.integers(0, 3))
    def restore(self, over_steps: int) -> None:
        self.asked.append(Asked(self.run.restore_lr(None, over_steps), "restore", None, None, over_steps))

    @rule()
    def take_back(self) -> None:
        self.asked.append(Asked(self.run.undo_lr(), "undo"))

    def carry_out(self) -> None:
        for asked in self.asked:
            expected = self.take_back_in_model() if asked.action == "undo" else self.change_model(asked)
            assert asked.command.status == expected
        self.asked = []

    def change_model(self, asked: Asked) -> str:
        if self.is_too_low(asked.action, asked.factor, asked.groups):
            return "rejected"  # what came between made it so
        chosen = [g for i, g in enumerate(self.groups) if asked.groups is None or i in asked.groups]
        self.undo.append([(g, g.factor, g.ramp) for g in chosen])
        for group in chosen:
            by_action = {"reduce": group.factor * (asked.factor or 0), "set": asked.factor or 0, "restore": 1.0}
            group.aim(by_action[asked.action], asked.over_steps)
        return "applied"

    def take_back_in_model(self) -> str:
        if not self.undo:
            return "rejected"
        kept = [one for one in self.undo.pop() if any(one[0] is group for group in self.groups)]
        for group, factor, ramp in kept:
            group.factor, group.ramp = factor, ramp
        return "applied" if kept else "rejected"

    # -------------------------------------------------------------------------------------------------- loop

    @rule(failure=st.sampled_from([None, None, None, ValueError("no"), KeyboardInterrupt()]))
    def step(self, failure: BaseException | None) -> None:
        self.optimizer.failure = failure
        with nullcontext() if failure is None else pytest.raises(type(failure)):
            self.optimizer.step()
        self.carry_out()
        scheduled = self.unwatched.scheduled()
        expected = [self.applied(lr, group.step()) for lr, group in zip(scheduled, self.groups, strict=True)]
        assert self.optimizer.used[-1] == expected

    def applied(self, lr: float, factor: float) -> float:
        """Return factor x schedule; of a reduced group not less than ``min_lr``, unless the schedule is."""
        if factor == 1.0:
            return lr
        return max(float(self.make(lr) * factor), float(self.make(min(lr, self.min_lr))))

    @rule(decay=st.floats(0.5, 1.5))
    def move_the_schedule_on(self, decay: float) -> None:
        self.watched.advance(decay)
        self.unwatched.advance(decay)

    @precondition(lambda self: self.watched.scheduler is None and len(self.groups) < MAX_GROUPS)
    @rule(lr=st.floats(1e-3, 1.0))
    def add_a_group(self, lr: float) -> None:
        for loop in (self.watched, self.unwatched):  # torch's schedulers know the groups of their beginning only
            loop.optimizer.add_param_group({"params": [weights()], "lr": self.make(lr)})
        self.groups.append(Group())

    @rule()
    def save(self) -> None:
        groups = [(g.factor, g.ramp) for g in self.groups]
        self.saved = Saved(self.watched.save(), self.unwatched.save(), groups)

    @precondition(lambda self: self.saved is not None and len(self.saved.groups) == len(self.groups))
    @rule()
    def load(self) -> None:
        assert self.saved is not None
        self.watched.load(self.saved.watched)
        self.unwatched.load(self.saved.unwatched)
        self.groups = [Group(*group) for group in self.saved.groups]

    # --------------------------------------------------------------------------------------------- invariant

    @invariant()
    def between_steps_the_groups_hold_the_schedule(self) -> None:
        if hasattr(self, "run"):
            scheduled = self.unwatched.scheduled()
            assert self.watched.scheduled() == scheduled
            assert [row.factor for row in self.run.lr] == [group.factor for group in self.groups]
            assert [row.scheduled for row in self.run.lr] == scheduled


def test_any_sequence_uses_factor_times_schedule(request: pytest.FixtureRequest, caplog) -> None:
    """Hundreds of sequences of commands, steps, failures, schedule steps, saves and loads, with a floor or without."""
    caplog.set_level(logging.ERROR, "monitor")
    asked = request.config.getoption("--hypothesis-seed")
    number = SEED if asked is None else asked
    print(f"the sequences of seed {number}; --hypothesis-seed=N tries others")
    run_state_machine_as_test(
        seed(number)(Control),
        settings=settings(
            max_examples=200,
            stateful_step_count=40,
        ),
    )
