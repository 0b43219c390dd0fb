"""What a command does to the learning rates: at once or over steps, reversible, exact, and put back."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families as parse_text

from monitor import CommandRefusedError, Run
from monitor.control import LearningRates, LRScaling
from monitor.export import Exporter
from tests.control.conftest import Noting, noting, number, weights

Attach = Callable[..., Run]


def used(optimizer: Noting, group: int = 0) -> list[float]:
    return [lrs[group] for lrs in optimizer.used]


def step(optimizer: Noting, times: int = 1) -> list[float]:
    """Make steps and return the LR that each used in the first group."""
    del optimizer.used[:]
    for _ in range(times):
        optimizer.step()
    return used(optimizer)


def test_reduce_multiplies_set_states_restore_ends(attach: Attach) -> None:
    """0.5 twice is 0.25; set may be repeated; restore leaves no trace in the group."""
    optimizer = noting(0.1)
    run = attach(optimizer)
    run.reduce_lr(0.5)
    run.reduce_lr(0.5)
    assert step(optimizer) == [0.1 * 0.25]
    run.set_lr_factor(0.3)
    run.set_lr_factor(0.3)
    assert step(optimizer) == [0.1 * 0.3]
    assert optimizer.param_groups[0]["lr"] == 0.1
    run.restore_lr()
    assert step(optimizer) == [0.1]
    assert set(optimizer.param_groups[0]) == {"params", "lr"}


def test_the_outcome_names_step_factors_and_lrs_of_each_group(attach: Attach) -> None:
    """The record says what changed, per group, and from which step on."""
    optimizer = noting(0.1, 0.2, names=("body", "head"))
    run = attach(optimizer)
    step(optimizer, 3)
    command = run.reduce_lr(0.5, groups=["head"], reason="spikes")
    assert (command.status, run.lr[1].factor, run.snapshot().commands_pending) == ("pending", 1.0, 1)
    step(optimizer)
    record = command.record
    assert (record.status, record.step, record.reason, record.source) == ("applied", 4, "spikes", "code")
    (change,) = record.changes
    assert (change.optimizer, change.param_group, change.name) == ("Noting", 1, "head")
    assert (change.factor_before, change.factor_after, change.lr_before, change.lr_after) == (1.0, 0.5, 0.2, 0.1)
    assert [tuple(row) for row in run.lr] == [
        ("Noting", 0, "body", 0.1, 1.0, 0.1),
        ("Noting", 1, "head", 0.2, 0.5, 0.1),
    ]
    assert run.snapshot().commands_total == {("reduce", "code", "applied"): 1}
    assert run.snapshot().commands_last_applied == {"reduce": record.finished}


def test_a_ramp_is_geometric_and_ends_on_the_factor(attach: Attach) -> None:
    """Each of N steps multiplies by the same ratio; the N-th uses the factor itself, exactly."""
    optimizer = noting(1.0)
    run = attach(optimizer)
    run.reduce_lr(0.5, over_steps=4)
    lrs = step(optimizer, 6)
    assert lrs[:3] == pytest.approx([0.5 ** (k / 4) for k in (1, 2, 3)], rel=1e-12)
    assert lrs[3:] == [0.5, 0.5, 0.5]
    assert set(optimizer.state_dict()["param_groups"][0]) == {"params", "lr", "monitor_lr_factor"}


@pytest.mark.parametrize("over_steps", [0, 1])
def test_a_ramp_of_one_step_is_at_once(attach: Attach, over_steps: int) -> None:
    """The first step uses the new factor."""
    optimizer = noting(1.0)
    attach(optimizer).set_lr_factor(0.5, over_steps=over_steps)
    assert step(optimizer, 2) == [0.5, 0.5]


def test_a_ramp_goes_up_again_too(attach: Attach) -> None:
    """restore over steps comes back to exactly 1, and then nothing is touched any more."""
    optimizer = noting(1.0)
    run = attach(optimizer)
    run.set_lr_factor(0.25)
    run.restore_lr(over_steps=2)
    assert step(optimizer, 3) == [0.5, 1.0, 1.0]
    assert set(optimizer.param_groups[0]) == {"params", "lr"}


def test_a_command_in_a_ramp_starts_from_the_factor_in_force(attach: Attach) -> None:
    """The new command replaces the ramp; reduce multiplies what the ramp had come to."""
    optimizer = noting(1.0)
    run = attach(optimizer)
    run.reduce_lr(0.25, over_steps=4)
    assert step(optimizer, 2)[-1] == pytest.approx(0.5)
    run.reduce_lr(0.5)
    assert step(optimizer, 3) == pytest.approx([0.25] * 3)


def test_undo_goes_back_change_by_change(attach: Attach) -> None:
    """A stack: the last change first, groups as they were each."""
    optimizer = noting(1.0, 1.0)
    run = attach(optimizer)
    run.reduce_lr(0.5)
    run.reduce_lr(0.5, groups=[1])
    run.restore_lr()
    optimizer.step()
    for _ in range(3):
        run.undo_lr()
        optimizer.step()
    assert optimizer.used == [[1.0, 1.0], [0.5, 0.25], [0.5, 0.5], [1.0, 1.0]]
    rejected = run.undo_lr()
    optimizer.step()
    assert rejected.status == "rejected"


def test_undo_in_a_ramp_takes_the_ramp_back(attach: Attach) -> None:
    """The factor before the command is in force at once."""
    optimizer = noting(1.0)
    run = attach(optimizer)
    run.reduce_lr(0.25, over_steps=4)
    step(optimizer, 2)
    run.undo_lr()
    assert step(optimizer, 2) == [1.0, 1.0]
    assert set(optimizer.param_groups[0]) == {"params", "lr"}


def test_undo_of_a_command_in_a_ramp_goes_on_with_the_ramp(attach: Attach) -> None:
    """What was under way is under way again, from where it had been."""
    optimizer = noting(1.0)
    run = attach(optimizer)
    run.reduce_lr(0.25, over_steps=4)
    before = step(optimizer, 2)
    run.set_lr_factor(0.01)
    step(optimizer)
    run.undo_lr()
    after = step(optimizer, 3)
    assert [*before, *after] == pytest.approx([0.25 ** (min(k, 4) / 4) for k in range(1, 6)])


def test_the_undo_stack_is_bounded(attach: Attach) -> None:
    """64 changes can be taken back; memory does not grow with the commands."""
    optimizer = noting(1.0)
    run = attach(optimizer)
    for i in range(70):
        run.set_lr_factor(1 / (i + 2))
        optimizer.step()
    outcomes = []
    for _ in range(65):
        outcomes.append(run.undo_lr())
        optimizer.step()
    assert [command.status for command in outcomes] == ["applied"] * 64 + ["rejected"]


def test_undo_after_a_load_is_rejected(attach: Attach) -> None:
    """The factors of a loaded state are the state's own: a change made before it cannot be taken back from it."""
    optimizer = noting(1.0)
    run = attach(optimizer)
    saved = copy.deepcopy(optimizer.state_dict())
    run.reduce_lr(0.5)
    step(optimizer)
    optimizer.load_state_dict(saved)
    assert step(optimizer) == [1.0]
    undo = run.undo_lr()
    assert step(optimizer) == [1.0]
    assert undo.status == "rejected"
    assert "the optimizer's state was loaded since the last one; use set or restore" in undo.record.message


def test_a_group_added_later_starts_at_its_schedule(attach: Attach) -> None:
    """Factors belong to the groups that were there; the next command without groups means the new one too."""
    optimizer = noting(1.0)
    run = attach(optimizer)
    run.reduce_lr(0.5)
    optimizer.step()
    optimizer.add_param_group({"params": [weights()], "lr": 0.3})
    optimizer.step()
    run.reduce_lr(0.5)
    optimizer.step()
    assert optimizer.used == [[0.5], [0.5, 0.3], [0.25, 0.15]]


def test_groups_that_share_one_lr_tensor_are_multiplied_once(attach: Attach) -> None:
    """torch hands its default LR object on to every group."""
    shared = torch.tensor(1.0)
    optimizer = Noting([{"params": [weights()]}, {"params": [weights()]}], lr=shared)
    run = attach(optimizer)
    run.reduce_lr(0.5)
    optimizer.step()
    run.reduce_lr(0.5, groups=[1])
    optimizer.step()
    assert optimizer.used == [[0.5, 0.5], [0.5, 0.25]]
    assert [group["lr"] is shared for group in optimizer.param_groups] == [True, True]
    assert shared.item() == 1.0
    assert [row.scheduled for row in run.lr] == [1.0, 1.0]


def test_an_lr_tensor_that_requires_grad_is_multiplied(attach: Attach) -> None:
    """A learned LR stays the leaf that it is, with its value after the step as before."""
    lr = torch.tensor(1.0, requires_grad=True)
    optimizer = noting(lr)
    run = attach(optimizer, min_lr=0.1)
    run.reduce_lr(0.5)
    assert step(optimizer, 2) == [0.5, 0.5]
    assert optimizer.param_groups[0]["lr"] is lr
    assert (lr.item(), lr.is_leaf, lr.requires_grad) == (1.0, True, True)
    assert run.snapshot().errors == {}


def test_a_reader_inside_the_step_is_told_the_schedule(attach: Attach) -> None:
    """run.lr from another thread, or from a closure, never takes the applied LR for the scheduled one."""
    optimizer = noting(1.0, torch.tensor(1.0))
    run = attach(optimizer)
    run.reduce_lr(0.5)
    seen = []
    optimizer.step(lambda: seen.append([(row.scheduled, row.applied) for row in run.lr]))
    assert seen == [[(1.0, 0.5), (1.0, 0.5)]]
    assert optimizer.used == [[0.5, 0.5]]


@pytest.mark.parametrize(
    "loaded",
    [
        {"monitor_lr_factor": "half"},
        {"monitor_lr_factor": math.nan},
        {"monitor_lr_factor": 0.0},
        {"monitor_lr_factor": -1.0},
        {"monitor_lr_factor": None},
        {"monitor_lr_factor": 0.5, "monitor_lr_ramp": [1.0, 0.5]},
        {"monitor_lr_factor": 0.5, "monitor_lr_ramp": [0.0, 0.5, 4, 1]},
        {"monitor_lr_factor": 0.5, "monitor_lr_ramp": "soon"},
    ],
)
def test_a_damaged_factor_is_dropped_and_reported_once(attach: Attach, loaded: dict) -> None:
    """A checkpoint that somebody edited costs its factor, not the training and not the watching."""
    optimizer = noting(1.0, 1.0)
    run = attach(optimizer)
    run.reduce_lr(0.5, groups=[0])
    optimizer.step()
    optimizer.param_groups[1].update(loaded)
    assert run.lr[0].factor == 0.5
    optimizer.step()
    optimizer.step()
    assert optimizer.used == [[0.5, 1.0], [1.0, 1.0], [0.5, 1.0]]
    assert run.snapshot().errors == {"probe": 1}
    assert set(optimizer.param_groups[1]) == {"params", "lr"}
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 1.0]


def test_an_lr_scaling_that_fails_half_way_has_changed_nothing() -> None:
    """All groups are multiplied or none."""
    optimizer = noting(1.0, 1.0)
    for group in optimizer.param_groups:
        group["monitor_lr_factor"] = 0.5
    optimizer.param_groups[1]["lr"] = "fast"
    scaling = LRScaling()
    with pytest.raises(TypeError):
        scaling.apply(optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, "fast"]
    assert not scaling.is_applied


def test_learning_rates_work_without_a_run() -> None:
    """Nothing but optimizers and their LR scaling is needed: the same object serves a loop of another make."""
    optimizer, scaling = noting(1.0), LRScaling()
    rates = LearningRates({"it": optimizer}, {"it": scaling})
    (change,) = rates.apply("reduce", 0.5, None, 0)
    assert (change.lr_before, change.lr_after) == (1.0, 0.5)
    assert scaling.apply(optimizer) == [0.5]
    assert (optimizer.param_groups[0]["lr"], rates.table()[0][3:]) == (0.5, (1.0, 0.5, 0.5))
    scaling.restore()
    scaling.restore()
    assert optimizer.param_groups[0]["lr"] == 1.0
    with pytest.raises(CommandRefusedError, match="takes effect at once"):
        rates.check("undo", None, None, 3)
    with pytest.raises(CommandRefusedError, match="restore takes no factor"):
        rates.check("restore", 0.5, None, 0)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("make", [float, torch.tensor])
def test_a_compiled_step_uses_the_factor(attach: Attach, make: Callable[[float], object]) -> None:
    """The factor is in the LR that compiled code reads, whether that is a number or a tensor."""
    weight = weights(3)
    optimizer = torch.optim.SGD([weight], lr=make(0.5))
    run = attach(optimizer)
    torch._dynamo.reset()
    compiled = torch.compile(optimizer.step, backend="eager")
    values = []
    for act in (lambda: None, lambda: run.reduce_lr(0.5), lambda: None, run.restore_lr):
        act()
        compiled()
        values.append(weight.detach()[0].item())
    assert values == [0.5, 0.25, 0.0, -0.5]
    assert float(optimizer.param_groups[0]["lr"]) == 0.5
    assert run.snapshot().errors == {}


def test_the_metric_of_the_factor_is_what_commands_put_in_force_also_at_the_floor(attach: Attach) -> None:
    """At the floor applied over scheduled is more; the LRs themselves tell it."""
    optimizer = noting(0.2)
    run = attach(optimizer, min_lr=0.06)
    run.reduce_lr(0.5)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.08
    optimizer.step()
    run.flush()
    body, _ = Exporter(run.snapshot).render(None)
    values = {s.name: s.value for family in parse_text(body.decode()) for s in family.samples}
    assert values["training_learning_rate"] == 0.06
    assert values["training_scheduled_learning_rate"] == 0.08
    assert values["training_learning_rate_factor"] == 0.5


class Counting(dict[str, Any]):
    """A param group that counts how often its LR is read."""

    num_reads = 0

    def __getitem__(self, key: str) -> Any:
        self.num_reads += key == "lr"
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """Read as ``dict.get`` does, and count."""
        self.num_reads += key == "lr"
        return super().get(key, default)


@pytest.mark.parametrize("num_groups", [1, 10, 100])
@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize("make", [float, torch.tensor])
def test_a_groups_lr_is_read_as_often_among_many_groups(
    make: Callable[[float], Any], is_shared: bool, num_groups: int
) -> None:
    """The work of a step grows with the number of groups, and not with its square, also for LR tensors."""
    optimizer = noting(0.1)
    lr = make(0.1)
    optimizer.param_groups = [
        Counting(params=[], lr=lr if is_shared else make(0.1), monitor_lr_factor=0.5) for _ in range(num_groups)
    ]
    scaling = LRScaling()
    scaling.apply(optimizer)
    reads = [group.num_reads for group in optimizer.param_groups]
    assert number(optimizer.param_groups[-1]["lr"]) == pytest.approx(0.05)
    scaling.restore()
    assert max(reads) <= 3
    assert [number(group["lr"]) for group in optimizer.param_groups] == [number(lr)] * num_groups


def test_groups_that_share_a_tensor_and_differ_get_tensors_of_their_own() -> None:
    """While the step continues, another thread finds the schedule's LR for each of them."""
    optimizer = noting(*[torch.tensor(0.1)] * 3)
    shared = optimizer.param_groups[0]["lr"]
    for group, factor in zip(optimizer.param_groups, (0.5, 0.25, 0.125), strict=True):
        group.update({"lr": shared, "monitor_lr_factor": factor})
    scaling = LRScaling()
    scaling.apply(optimizer)
    assert [number(g["lr"]) for g in optimizer.param_groups] == pytest.approx([0.05, 0.025, 0.0125])
    assert [number(scaling.scheduled(g)) for g in optimizer.param_groups] == [number(shared)] * 3
    assert number(shared) == pytest.approx(0.1)
    scaling.restore()
    assert all(group["lr"] is shared for group in optimizer.param_groups)


def test_an_optimizer_made_under_a_live_run_is_left_alone_until_it_is_attached(attach: Attach) -> None:
    """No factor applies to it and its steps are not counted; attached with the old one's state it continues reduced."""
    first = noting(0.1)
    with attach(first) as run:
        run.reduce_lr(0.5)
        first.step()
        second = noting(0.1)
        second.step()
        command = run.reduce_lr(0.5)
        second.load_state_dict(first.state_dict())
        second.step()
        assert (second.used, run.step, command.status) == ([[0.1], [0.1]], 1, "pending")
    with attach(second) as run:
        second.step()
        assert (second.used[-1], run.lr[0].factor) == ([0.05], 0.5)
