"""One cell of the LR matrix: the same loop without the monitor, with the LR written by hand, and under the monitor."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

import monitor
from tests.torch.lr_recipes import STEPS, OptimizerRecipe, Schedule

PLAN: dict[int, tuple[Any, ...]] = {
    3: ("reduce", 0.5, None),
    5: ("reduce", 0.3, (0,)),
    8: ("undo",),
    10: ("restore",),
}
"""What is asked for before which step."""
EPOCH = 4
PLAN_BY_EPOCH: dict[int, tuple[Any, ...]] = {
    1: ("reduce", 0.5, None),
    2: ("reduce", 0.3, (0,)),
    3: ("undo",),
    5: ("reduce", 0.4, None),
    7: ("undo",),
    8: ("reduce", 0.5, (0,)),
    9: ("restore",),
    10: ("undo",),
}
"""The same for a loop that makes a new optimizer each epoch: every undo finds a change of its own epoch."""
LOOPS = (
    "scheduler after each step",
    "scheduler before each step",
    "scheduler once an epoch",
    "gradient accumulation",
    "new optimizer each epoch",
)


def plan_for(loop: str) -> dict[int, tuple[Any, ...]]:
    """Return the commands for a kind of loop."""
    return PLAN_BY_EPOCH if loop == "new optimizer each epoch" else PLAN


class Unwatched:
    """The loop as its owner wrote it. Commands are not heard."""

    @contextmanager
    def watch(self, optimizer: Optimizer) -> Iterator[None]:
        yield

    def command(self, action: str, *arguments: Any) -> Any:
        pass

    def step(self, optimizer: Optimizer, *closure: Any) -> None:
        optimizer.step(*closure)


class ByHand(Unwatched):
    """The reference: factor x schedule, written into the param groups around each step by hand."""

    def __init__(self) -> None:
        self.factors: list[float] = []
        self.before: list[list[float]] = []

    @contextmanager
    def watch(self, optimizer: Optimizer) -> Iterator[None]:
        self.factors, self.before = [1.0 for _ in optimizer.param_groups], []
        yield

    def command(self, action: str, factor: float = 1.0, groups: tuple[int, ...] | None = None) -> None:
        if action == "undo":
            self.factors = self.before.pop()
            return
        self.before.append(list(self.factors))
        for i in range(len(self.factors)) if groups is None else groups:
            self.factors[i] = 1.0 if action == "restore" else self.factors[i] * factor

    def step(self, optimizer: Optimizer, *closure: Any) -> None:
        scheduled = [g["lr"] for g in optimizer.param_groups]
        for group, factor in zip(optimizer.param_groups, self.factors, strict=True):
            if factor != 1.0:
                group["lr"] = group["lr"] * factor
        optimizer.step(*closure)
        for group, lr in zip(optimizer.param_groups, scheduled, strict=True):
            group["lr"] = lr


class Monitored(Unwatched):
    """The loop inside ``with monitor.attach(...)``; each run has a folder of its own below ``directory``."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    @contextmanager
    def watch(self, optimizer: Optimizer) -> Iterator[None]:
        quick: dict[str, Any] = {"serve": False, "gpu": False, "linger": 0}
        with (
            TemporaryDirectory(dir=self.directory) as folder,
            monitor.attach(optimizer, directory=folder, **quick) as self.run,
        ):
            yield
            assert self.run.snapshot().errors == {}

    def command(self, action: str, *arguments: Any) -> Any:
        run = self.run
        return {"reduce": run.reduce_lr, "undo": run.undo_lr, "restore": run.restore_lr}[action](*arguments)


@dataclass
class Course:
    """What a run did: the weights after each step, the LRs that a logger reads between steps, torch's warnings."""

    weights: list[Tensor] = field(default_factory=list)
    lrs: list[float] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def is_like(self, other: Course) -> bool:
        """Tell whether two runs are the same, bit by bit."""
        same = all(torch.equal(a, b) for a, b in zip(self.weights, other.weights, strict=True))
        return same and self.lrs == other.lrs and self.warnings == other.warnings


def run(
    recipe: OptimizerRecipe, schedule: Schedule, keeper: Unwatched, *, loop: str = LOOPS[0], plan: Any = None
) -> Course:
    """Train for ``STEPS`` steps, with ``plan`` (commands by step), and return what happened."""
    course = Course()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.manual_seed(7)
        model = recipe.new_model()
        length = EPOCH if loop == "new optimizer each epoch" else STEPS
        for first in range(0, STEPS, length):
            _train(recipe, schedule, keeper, loop, model, range(first, first + length), plan or {}, course)
    course.warnings = sorted({f"{w.category.__name__}: {w.message}" for w in caught})
    return course


def refusal(recipe: OptimizerRecipe) -> Exception | None:
    """Return what torch refuses a variant with on this machine, or None where it trains."""
    try:
        run(recipe, Schedule("none", lambda _: lambda _: None), Unwatched())
    except Exception as error:
        return error
    return None


def _train(
    recipe: OptimizerRecipe,
    schedule: Schedule,
    keeper: Unwatched,
    loop: str,
    model: Any,
    steps: range,
    plan: dict[int, tuple[Any, ...]],
    course: Course,
) -> None:
    optimizer = recipe.build(model)
    advance = schedule.build(optimizer)
    with keeper.watch(optimizer):
        for i in steps:
            if (asked := plan.get(i)) is not None:
                keeper.command(*asked)
            if loop == "scheduler before each step":
                advance(i)
            _step(recipe, keeper, optimizer, _closure(model, optimizer, i, 2 if loop == "gradient accumulation" else 1))
            is_due = loop != "scheduler once an epoch" or i % EPOCH == EPOCH - 1
            if is_due and loop != "scheduler before each step":
                advance(i)
            course.weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
            course.lrs += [float(group["lr"]) for group in optimizer.param_groups]


def _step(recipe: OptimizerRecipe, keeper: Unwatched, optimizer: Optimizer, closure: Callable[[], Tensor]) -> None:
    if recipe.has_closure:
        keeper.step(optimizer, closure)
    else:
        closure()
        keeper.step(optimizer)


def _closure(model: Any, optimizer: Optimizer, i: int, num_micro_batches: int) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        losses = [model.loss(i + k) / num_micro_batches for k in range(num_micro_batches)]
        for loss in losses:
            loss.backward()
        return sum(losses)  # type: ignore[return-value]

    return closure
