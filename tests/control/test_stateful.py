"""Whatever is asked, saved, loaded, added or raised, in whatever order: what a step uses is factor x schedule."""

from __future__ import annotations

import copy
import logging
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import monitor
from tests.control.conftest import Noting, weights

FACTORS = st.floats(0.01, 1.0)
MAX_GROUPS = 4


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


@dataclass
class Saved:
    """A checkpoint, and what the model was then."""

    state: dict[str, Any]
    groups: list[tuple[float, Any]]
    lrs: list[float]


@dataclass
class Asked:
    """A command that waits, and what it must do."""

    command: Any
    action: str
    factor: float | None = None
    groups: tuple[int, ...] | None = None
    over_steps: int = 0


class Control(RuleBasedStateMachine):
    """A run beside a model of it that knows nothing of how it works."""

    @initialize(is_tensor=st.booleans(), lrs=st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=2))
    def begin(self, is_tensor: bool, lrs: list[float]) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.make = torch.tensor if is_tensor else float
        self.optimizer = Noting([{"params": [weights()], "lr": self.make(lr)} for lr in lrs])
        self.run = monitor.attach(self.optimizer, serve=False, gpu=False, directory=self.folder.name, linger=0)
        self.lrs = list(lrs)
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
        self.asked.append(Asked(submit(factor, groups, over_steps), action, factor, groups, over_steps))

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
        expected = [self.applied(lr, group.step()) for lr, group in zip(self.lrs, self.groups, strict=True)]
        assert self.optimizer.used[-1] == expected

    def applied(self, lr: float, factor: float) -> float:
        return float(self.make(lr) * factor) if factor != 1.0 else float(self.make(lr))

    @rule(decay=st.floats(0.5, 1.5))
    def move_the_schedule_on(self, decay: float) -> None:
        for i, group in enumerate(self.optimizer.param_groups):
            self.lrs[i] *= decay
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(self.lrs[i])
            else:
                group["lr"] = self.lrs[i]

    @precondition(lambda self: len(self.groups) < MAX_GROUPS)
    @rule(lr=st.floats(1e-3, 1.0))
    def add_a_group(self, lr: float) -> None:
        self.optimizer.add_param_group({"params": [weights()], "lr": self.make(lr)})
        self.lrs.append(lr)
        self.groups.append(Group())

    @rule()
    def save(self) -> None:
        state = copy.deepcopy(self.optimizer.state_dict())
        self.saved = Saved(state, [(g.factor, g.ramp) for g in self.groups], list(self.lrs))

    @precondition(lambda self: self.saved is not None and len(self.saved.lrs) == len(self.groups))
    @rule()
    def load(self) -> None:
        assert self.saved is not None
        self.optimizer.load_state_dict(self.saved.state)
        self.groups = [Group(*group) for group in self.saved.groups]
        self.lrs = list(self.saved.lrs)

    # --------------------------------------------------------------------------------------------- invariant

    @invariant()
    def between_steps_the_groups_hold_the_schedule(self) -> None:
        if hasattr(self, "run"):
            scheduled = [float(self.make(lr)) for lr in self.lrs]
            assert [float(group["lr"]) for group in self.optimizer.param_groups] == scheduled
            assert [row.factor for row in self.run.lr] == [group.factor for group in self.groups]
            assert [row.scheduled for row in self.run.lr] == scheduled


class TestControl(Control.TestCase):
    settings = settings(
        max_examples=200,
        stateful_step_count=40,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )

    def setUp(self) -> None:
        logging.getLogger("monitor").setLevel(logging.ERROR)

    def tearDown(self) -> None:
        logging.getLogger("monitor").setLevel(logging.NOTSET)
