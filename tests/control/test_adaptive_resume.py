"""A warm-up is for the start of a run: one that is running is left at the LR that it had."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import Optimizer

import monitor
from monitor import Run
from tests.control.conftest import weights

Attach = Callable[..., Run]
MAKERS = {"Adam": torch.optim.Adam, "Adagrad": torch.optim.Adagrad, "SGD": torch.optim.SGD}


def make(name: str = "Adam") -> Optimizer:
    return MAKERS[name]([weights()], lr=0.1)


def attach_warm(attach: Attach, optimizer: Optimizer) -> Run:
    return attach(optimizer, policies=[monitor.AdaptiveLR(warmup_steps=60)])


def factor_after(optimizer: Optimizer, run: Run, steps: int = 1) -> float:
    """Make some steps, the recorder waited for after each; return the factor that the last one used."""
    for _ in range(steps):
        optimizer.step()
        assert run.flush()
    return float(run.lr[0].factor)


def audit_of(run: Run) -> list[tuple[str, str]]:
    return [(e.details["status"], e.message) for e in run.events() if e.kind == "control"]


@pytest.mark.parametrize("name", list(MAKERS))
def test_a_fresh_run_is_warmed_up(attach: Attach, name: str) -> None:
    """A thousandth at the first step, then upwards; state made with the optimizer itself is no earlier step."""
    optimizer = make(name)
    run = attach_warm(attach, optimizer)
    assert [factor_after(optimizer, run), factor_after(optimizer, run)] == pytest.approx(
        [1e-3 ** (59 / 60), 1e-3 ** (58 / 60)]
    )


@pytest.mark.parametrize("is_late", [False, True], ids=["loaded before attach", "loaded after attach"])
@pytest.mark.parametrize("name", ["Adam", "Adagrad"])
def test_an_optimizer_with_the_state_of_earlier_steps_is_not_warmed_up(
    attach: Attach, name: str, is_late: bool
) -> None:
    """Whenever it was loaded; the audit trail says why, once."""
    old, optimizer = make(name), make(name)
    old.step()
    if not is_late:
        optimizer.load_state_dict(old.state_dict())
    run = attach_warm(attach, optimizer)
    if is_late:
        optimizer.load_state_dict(old.state_dict())
    assert factor_after(optimizer, run, 5) == 1.0
    ((status, message),) = audit_of(run)
    assert status == "rejected"
    assert f"{name} holds the state of earlier steps; this is for a fresh run" in message


def test_a_factor_that_came_with_a_checkpoint_is_kept(attach: Attach) -> None:
    """Plain SGD has no state: its factor shows that the run continues."""
    optimizer = make("SGD")
    optimizer.param_groups[0]["monitor_lr_factor"] = 0.3
    run = attach_warm(attach, optimizer)
    assert factor_after(optimizer, run, 5) == 0.3
    assert "has a factor already" in audit_of(run)[0][1]


def test_a_run_that_was_told_of_its_earlier_steps_is_not_warmed_up(attach: Attach) -> None:
    """run.load_state_dict is enough, where the optimizer shows nothing."""
    first = attach(make("SGD"))
    factor_after(next(iter(first._engine.optimizers.values())), first, 3)
    state: dict[str, Any] = first.state_dict()
    optimizer = make("SGD")
    run = attach_warm(attach, optimizer)
    run.load_state_dict(state)
    assert factor_after(optimizer, run, 5) == 1.0
    assert "the run continues at step 4; this is for its first step" in audit_of(run)[0][1]
