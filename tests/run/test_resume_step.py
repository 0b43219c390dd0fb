"""Where a run continues, by what the optimizer itself knows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from monitor.run._resume import holds_state, step_of, where_to_continue


def trained(kind: Any, steps: int = 3, **settings: Any) -> torch.optim.Optimizer:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer: torch.optim.Optimizer = kind([weight], lr=0.1, **settings)
    for _ in range(steps):
        weight.square().sum().backward()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.Adagrad])
def test_an_optimizer_that_counts_its_steps_says_where(kind: Any) -> None:
    """Its own count beats what was recorded."""
    step, why = where_to_continue({"main": trained(kind)}, 100)
    assert (step, "optimizer's own state" in why) == (3, True)


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9}])
def test_an_optimizer_that_counts_none_leaves_it_to_the_record(settings: dict[str, Any]) -> None:
    """Then the last step that was recorded is the only one known."""
    step, why = where_to_continue({"main": trained(torch.optim.SGD, **settings)}, 100)
    assert (step, "recorded up to there" in why) == (100, True)


def test_only_an_optimizer_with_state_was_loaded() -> None:
    """A fresh one holds nothing, and SGD without momentum never does."""
    assert not holds_state({"main": trained(torch.optim.Adam, 0)})
    assert not holds_state({"main": trained(torch.optim.SGD)})
    assert holds_state({"main": trained(torch.optim.SGD, momentum=0.9)})


@pytest.mark.parametrize("count", [torch.ones(3), "many", None, torch.tensor(float("nan"))])
def test_a_count_of_another_make_is_no_count(count: object) -> None:
    """What cannot be one number is passed over."""
    optimizer = trained(torch.optim.SGD, momentum=0.9)
    next(iter(optimizer.state.values()))["step"] = count
    assert step_of(optimizer) is None
