"""A run on a tiny model, stepped by the test itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import Optimizer

import monitor
from monitor import Run


class Noting(Optimizer):
    """Plain gradient descent that notes the LRs which each update uses, and fails when told to."""

    def __init__(self, params: Any, lr: Any = 0.1) -> None:
        super().__init__(params, {"lr": lr})
        self.used: list[list[float]] = []
        self.failure: BaseException | None = None

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if closure is not None:
            closure()
        self.used.append([number(group["lr"]) for group in self.param_groups])
        if self.failure is not None:
            raise self.failure


def number(lr: Any) -> float:
    """Return an LR as a float; a learned one without torch's warning."""
    return float(lr.detach() if isinstance(lr, torch.Tensor) else lr)


def weights(*shape: int) -> torch.nn.Parameter:
    """Return a parameter of ones with a gradient of ones."""
    parameter = torch.nn.Parameter(torch.ones(shape or (2,)))
    parameter.grad = torch.ones_like(parameter)
    return parameter


def noting(*lrs: Any, names: tuple[str, ...] = ()) -> Noting:
    """Return an optimizer with one param group for each LR."""
    groups: list[dict[str, Any]] = [{"params": [weights()], "lr": lr} for lr in lrs]
    for group, name in zip(groups, names, strict=False):
        group["name"] = name
    return Noting(groups)


@pytest.fixture
def attach(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Return ``monitor.attach`` without HTTP; what it opens is closed with the test."""
    with ExitStack() as stack:

        def make(optimizer: Any, *args: Any, **settings: Any) -> Run:
            stack.callback(lambda: optimizer)  # a run keeps none alive
            quick = {"serve": False, "gpu": False, "directory": str(tmp_path), "linger": 0, **settings}
            return stack.enter_context(monitor.attach(optimizer, *args, **quick))

        yield make
