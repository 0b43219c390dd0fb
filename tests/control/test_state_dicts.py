"""What the states of a watched optimizer hold, and what a loaded one puts in force."""

from __future__ import annotations

import copy
import gc
import logging
import types
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from monitor import Run
from tests.control.conftest import noting

Attach = Callable[..., Run]
Paths = dict[str, Any]


def adam(*lrs: float) -> torch.optim.Optimizer:
    """Return an optimizer with state, one group for each LR."""
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": lr} for lr in lrs]
    return torch.optim.AdamW(groups)


def step(optimizer: torch.optim.Optimizer, times: int = 1) -> None:
    for _ in range(times):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.ones_like(parameter)
        optimizer.step()


def factors(run: Run) -> list[float]:
    return [row.factor for row in run.lr]


def keys_of_ours(groups: Any) -> list[dict[str, Any]]:
    return [{k: v for k, v in group.items() if k.startswith("monitor_")} for group in groups]


def flattened(value: Any, path: str = "") -> Paths:
    """Return the leaves of a state by their paths, as a snapshot stores them."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, item in items for k, v in flattened(item, f"{path}/{key}").items()}
    return {path: value}


def inflated(value: Any, paths: Paths, path: str = "") -> Any:
    """Return a state of the same shape with what is stored under each of its paths; KeyError for one that is not."""
    if isinstance(value, dict):
        return {key: inflated(item, paths, f"{path}/{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [inflated(item, paths, f"{path}/{i}") for i, item in enumerate(value)]
    return paths[path]


class Snapshot:
    """A reader of the kind of torchsnapshot: the state of now is the template of what is read."""

    def __init__(self, stateful: Any) -> None:
        self.paths = copy.deepcopy(flattened(stateful.state_dict()))

    def restore(self, stateful: Any) -> None:
        stateful.load_state_dict(inflated(stateful.state_dict(), self.paths))


def test_a_live_group_holds_no_key_of_ours(attach: Attach) -> None:
    """Not while a factor is in force nor during a ramp: whoever looks up each key of a live group finds the user's."""
    optimizer = adam(0.1, 0.2)
    bare = [set(group) for group in adam(0.1, 0.2).param_groups]
    run = attach(optimizer)
    run.reduce_lr(0.5, groups=[0])
    run.reduce_lr(0.1, groups=[1], over_steps=4)
    step(optimizer, 2)
    assert [set(group) for group in optimizer.param_groups] == bare
    assert factors(run) == [0.5, pytest.approx(0.1**0.5)]


def test_the_optimizers_own_state_holds_the_factors(attach: Attach) -> None:
    """Under monitor_lr_factor and monitor_lr_ramp in the groups that have one, and in no other."""
    optimizer = adam(0.1, 0.2, 0.3)
    run = attach(optimizer)
    run.reduce_lr(0.5, groups=[0])
    run.reduce_lr(0.25, groups=[2], over_steps=2)
    step(optimizer)
    assert keys_of_ours(optimizer.state_dict()["param_groups"]) == [
        {"monitor_lr_factor": 0.5},
        {},
        {"monitor_lr_factor": 0.5, "monitor_lr_ramp": [1.0, 0.25, 2, 1]},
    ]


@pytest.mark.parametrize("is_commanded", [False, True])
def test_a_state_without_a_factor_is_that_of_an_unwatched_optimizer(attach: Attach, is_commanded: bool) -> None:
    """The same keys in the same order, also after a factor was in force and is so no more."""
    watched, bare = adam(0.1), adam(0.1)
    run = attach(watched)
    if is_commanded:
        run.reduce_lr(0.5)
        step(watched)
        run.restore_lr()
        step(watched)
        step(bare, 2)
    state, expected = watched.state_dict(), bare.state_dict()
    assert [list(group) for group in state["param_groups"]] == [list(group) for group in expected["param_groups"]]
    assert state["param_groups"] == expected["param_groups"]


@pytest.mark.parametrize("is_late", [False, True])
def test_a_loaded_factor_is_in_force_before_the_next_step(attach: Attach, is_late: bool) -> None:
    """Loaded before attach or after it; run.lr shows it at once."""
    first = adam(0.1, 0.2)
    run = attach(first)
    run.reduce_lr(0.5, groups=[1])
    step(first)
    saved = copy.deepcopy(first.state_dict())
    second = adam(0.1, 0.2)
    again = attach(second) if is_late else None
    second.load_state_dict(saved)
    again = again or attach(second)
    assert factors(again) == [1.0, 0.5]
    step(second)
    again.flush()
    assert [g.applied for g in again.snapshot().optimizers[0].groups] == [0.1, 0.1]


def test_a_state_without_a_factor_takes_the_reduction_back(attach: Attach) -> None:
    """Both of a run that was never watched and of this one before the command; undo has nothing to take back then."""
    optimizer = adam(0.1)
    run = attach(optimizer)
    step(optimizer)
    clean = copy.deepcopy(optimizer.state_dict())
    run.reduce_lr(0.5)
    step(optimizer)
    optimizer.load_state_dict(clean)
    assert factors(run) == [1.0]
    undone = run.undo_lr()
    step(optimizer)
    assert (undone.status, factors(run)) == ("rejected", [1.0])
    run.set_lr_factor(0.25)
    step(optimizer)
    assert factors(run) == [0.25]


def test_groups_put_in_by_hand_or_by_a_load_without_hooks_count(attach: Attach) -> None:
    """Some optimizers replace their groups themselves: the key in the new group is in force, the old factor is not."""
    optimizer = noting(1.0, 1.0)
    run = attach(optimizer)
    run.reduce_lr(0.5)
    optimizer.step()
    optimizer.param_groups = [{**optimizer.param_groups[0], "monitor_lr_factor": 0.25}, {**optimizer.param_groups[1]}]
    assert factors(run) == [0.25, 1.0]
    optimizer.step()
    assert optimizer.used[-1] == [0.25, 1.0]
    assert keys_of_ours(optimizer.param_groups) == [{}, {}]


def test_a_bad_factor_in_a_loaded_state_is_dropped_and_reported(attach: Attach) -> None:
    """The load itself goes well, and the schedule's own LR is used."""
    optimizer = adam(0.1)
    run = attach(optimizer)
    saved = optimizer.state_dict()
    saved["param_groups"][0]["monitor_lr_factor"] = "half"
    optimizer.load_state_dict(saved)
    assert factors(run) == [1.0]
    step(optimizer)
    run.flush()
    assert run.snapshot().errors == {"control": 1}


def test_after_the_run_the_factor_is_in_the_group_and_in_force_in_the_next_run(attach: Attach) -> None:
    """What is saved after the with block holds it too; the hooks and the attribute are gone."""
    optimizer = adam(0.1)
    before = {name: len(value) for name, value in vars(optimizer).items() if "hooks" in name}
    run = attach(optimizer)
    run.reduce_lr(0.5)
    step(optimizer)
    run.close()
    assert {name: len(value) for name, value in vars(optimizer).items() if "hooks" in name} == before
    assert factors(run) == [0.5]
    assert not any("monitor" in name for name in vars(optimizer))
    assert keys_of_ours(optimizer.state_dict()["param_groups"]) == [{"monitor_lr_factor": 0.5}]
    again = attach(optimizer)
    assert (factors(again), keys_of_ours(optimizer.param_groups)) == ([0.5], [{}])


# ------------------------------------------------------------------------------------ readers of exactly its keys


def test_a_snapshot_from_before_a_reduction_is_restored(attach: Attach) -> None:
    """The template that restore asks for has no key that the snapshot lacks, and factor 1 is in force."""
    optimizer = adam(0.1, 0.2)
    run = attach(optimizer)
    step(optimizer)
    snapshot = Snapshot(optimizer)
    run.reduce_lr(0.5, groups=[0])
    run.reduce_lr(0.1, groups=[1], over_steps=4)
    step(optimizer)
    snapshot.restore(optimizer)
    assert factors(run) == [1.0, 1.0]


def test_a_snapshot_and_the_runs_own_keep_the_factor(attach: Attach, caplog: pytest.LogCaptureFixture) -> None:
    """The run is a stateful thing like others: what it holds is restored with it, a ramp under way as well."""
    first = adam(0.1, 0.2)
    run = attach(first)
    run.reduce_lr(0.5, groups=[0])
    run.reduce_lr(0.25, groups=[1], over_steps=4)
    step(first, 2)
    taken = [(Snapshot(first), Snapshot(run))]
    step(first, 2)
    second = adam(0.1, 0.2)
    again = attach(second)
    for optimizer, own in taken:
        own.restore(again)
        optimizer.restore(second)
    assert factors(again) == [0.5, 0.5]
    step(second, 2)
    assert factors(again) == factors(run) == [0.5, 0.25]


def test_an_unwatched_optimizer_restores_a_snapshot_with_a_factor(attach: Attach) -> None:
    """Its template lacks the key, which is passed over."""
    first = adam(0.1)
    run = attach(first)
    run.reduce_lr(0.5)
    step(first)
    second = adam(0.1)
    step(second)
    Snapshot(first).restore(second)
    assert keys_of_ours(second.param_groups) == [{}]


@pytest.mark.parametrize("module", ["torch.distributed.checkpoint.state_dict", "torchsnapshot.snapshot"])
def test_a_package_that_demands_every_key_gets_none_of_ours(
    attach: Attach, caplog: pytest.LogCaptureFixture, module: str
) -> None:
    """However deep it asks from. One warning for the run names the factors and what to save beside it."""
    optimizer = adam(0.1, 0.2)
    run = attach(optimizer)
    run.reduce_lr(0.5, groups=[1])
    step(optimizer)
    package = types.ModuleType(module)
    exec("def take(ask):\n    return ask()", vars(package))  # its callers are looked at
    states = [package.take(lambda: optimizer.state_dict()) for _ in range(2)]
    assert [keys_of_ours(state["param_groups"]) for state in states] == [[{}, {}]] * 2
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and "left out" in r.msg]
    assert "AdamW group 1: 0.5" in warning
    assert "save run.state_dict()" in warning


# ---------------------------------------------------------------------------------------------- the run's own state


@pytest.mark.parametrize("is_first", [True, False])
def test_the_runs_state_brings_the_factors_whichever_is_loaded_first(attach: Attach, is_first: bool) -> None:
    """The optimizer's state may lack them: those of the run are in force until it has made a step."""
    first, bare = adam(0.1, 0.2), adam(0.1, 0.2)
    run = attach(first)
    run.reduce_lr(0.5, groups=[1])
    step(first)
    step(bare)
    state = run.state_dict()
    second = adam(0.1, 0.2)
    again = attach(second)
    loads = [lambda: again.load_state_dict(state), lambda: second.load_state_dict(bare.state_dict())]
    for load in loads if is_first else reversed(loads):
        load()
    assert factors(again) == [1.0, 0.5]
    step(second)
    second.load_state_dict(bare.state_dict())
    assert factors(again) == [1.0, 1.0]


def test_a_command_ends_the_wait_for_the_optimizers_state(attach: Attach) -> None:
    """A factor that was restored, and taken back by command, does not come again with a state loaded later."""
    optimizer, bare = adam(0.1), adam(0.1)
    step(bare)
    run = attach(optimizer)
    state = run.state_dict()
    state["lr_factors"] = {"AdamW": [(0.5, None)]}
    run.load_state_dict(state)
    run.restore_lr()
    step(optimizer)
    optimizer.load_state_dict(bare.state_dict())
    assert factors(run) == [1.0]


def test_a_state_of_an_earlier_version_leaves_the_factors_alone(attach: Attach) -> None:
    """It has none: those that came with the optimizer stay."""
    optimizer = adam(0.1)
    run = attach(optimizer)
    run.reduce_lr(0.5)
    step(optimizer)
    state = run.state_dict()
    del state["lr_factors"]
    run.load_state_dict(state)
    assert factors(run) == [0.5]


@pytest.mark.parametrize("rows", [[("half", None)], [(0.0, None)], [(0.5, [1.0])], [0.5], 3])
def test_invalid_factors_in_the_runs_state_are_refused(attach: Attach, rows: Any) -> None:
    """A ValueError, and nothing has changed."""
    run = attach(adam(0.1))
    with pytest.raises(ValueError, match="factor"):
        run.load_state_dict({**run.state_dict(), "lr_factors": {"AdamW": rows}})
    assert factors(run) == [1.0]


def test_the_factors_keep_no_optimizer_alive(attach: Attach) -> None:
    """What is kept hangs on the optimizer and does not refer to it: no cycle that waits for the garbage collector."""
    from monitor.control._factors import Factors

    optimizer = adam(0.1)
    Factors.of(optimizer).open("it", optimizer, lambda *_: None)
    Factors.of(optimizer).put(optimizer.param_groups[0], 0.5)
    parameter = weakref.ref(optimizer.param_groups[0]["params"][0])
    gc.disable()
    try:
        del optimizer
        assert parameter() is None
    finally:
        gc.enable()
