"""What cannot be is refused when it is asked for, with the value and the cure, and nothing changes."""

from __future__ import annotations

import fractions
import math
import re
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import monitor
from monitor import ClosedRunError, CommandRefusedError, QueueFullError, Run
from monitor.common import as_name
from monitor.control import LearningRates, LRScaling
from tests.control.conftest import noting

Attach = Callable[..., Run]


@pytest.mark.parametrize(
    ("action", "arguments", "field", "words"),
    [
        ("reduce_lr", (0,), "factor", "factor must be in (0, 1], got 0"),
        ("reduce_lr", (-0.5,), "factor", "got -0.5; to end a run use stop"),
        ("reduce_lr", (math.nan,), "factor", "got nan"),
        ("reduce_lr", (math.inf,), "factor", "got inf"),
        ("reduce_lr", (10**400,), "factor", "got inf"),
        ("reduce_lr", (4.0,), "factor", "got 4.0; attach(allow_increase=True) lifts the upper bound"),
        ("set_lr_factor", (1.0001,), "factor", "got 1.0001"),
        ("reduce_lr", ("0.5",), "factor", "must be a number in (0, 1], got '0.5'"),
        ("reduce_lr", (True,), "factor", "got True"),
        ("reduce_lr", (None,), "factor", "got None"),
        ("reduce_lr", (torch.tensor(0.5),), "factor", "got tensor(0.5000)"),
        ("reduce_lr", (1e-200,), "factor", "must stay between 1e-100 and 1e+100"),
        ("reduce_lr", (0.5, [2]), "groups", "no param group 2; there are 0, 1, body, head"),
        ("reduce_lr", (0.5, [-1]), "groups", "no param group -1"),
        ("reduce_lr", (0.5, ["tail"]), "groups", "no param group 'tail'"),
        ("reduce_lr", (0.5, [True]), "groups", "no param group True"),
        ("reduce_lr", (0.5, [1.0]), "groups", "no param group 1.0"),
        ("reduce_lr", (0.5, [None]), "groups", "no param group None"),
        ("reduce_lr", (0.5, ["9" * 5000]), "groups", "no param group '999"),
        ("reduce_lr", (0.5, []), "groups", "at least one param group, got []; leave it out for all"),
        ("restore_lr", ([7],), "groups", "no param group 7"),
        ("reduce_lr", (0.5, None, -1), "over_steps", "whole number of steps from 0 to 10**9, got -1"),
        ("reduce_lr", (0.5, None, 1.5), "over_steps", "got 1.5"),
        ("reduce_lr", (0.5, None, True), "over_steps", "got True"),
        ("reduce_lr", (0.5, None, 10**9 + 1), "over_steps", "got 1000000001"),
        ("restore_lr", (None, "3"), "over_steps", "got '3'"),
        ("reduce_lr", (0.5, None, 0, 5), "reason", "reason must be a string, got 5"),
        ("undo_lr", ("x" * 501,), "reason", "500 characters or fewer, got 501"),
    ],
)  # fmt: skip
def test_a_command_that_cannot_be_is_a_value_error_with_the_value_and_the_field(
    attach: Attach, action: str, arguments: tuple[Any, ...], field: str, words: str
) -> None:
    """The refusal is audited and counted as rejected; no group has changed and no command waits."""
    optimizer = noting(0.1, 0.2, names=("body", "head"))
    run = attach(optimizer)
    with pytest.raises(CommandRefusedError) as caught:
        getattr(run, action)(*arguments)
    assert isinstance(caught.value, ValueError)
    assert caught.value.field == field
    assert words in str(caught.value)
    optimizer.step()
    assert optimizer.used == [[0.1, 0.2]]
    assert run.snapshot().commands_pending == 0
    assert set(run.snapshot().commands_total.items()) == {((action.split("_", maxsplit=1)[0], "code", "rejected"), 1)}
    run.flush()
    (entry,) = [event for event in run.events() if event.kind == "control"]
    assert entry.severity == "warning"
    assert entry.details["status"] == "rejected"
    assert run.snapshot().errors == {}


@pytest.mark.parametrize("factor", [np.float64(0.5), np.float32(0.5), fractions.Fraction(1, 2), 0.5])
def test_a_factor_may_be_any_real_number(attach: Attach, factor: Any) -> None:
    """numpy's numbers and fractions count as what they are."""
    optimizer = noting(0.1)
    record = attach(optimizer).reduce_lr(factor).record
    assert (record.factor, type(record.factor)) == (0.5, float)


@pytest.mark.parametrize("groups", [1, "head", [1], ("head",), ["1"], (g for g in ["head", 1]), ["Noting/1"]])
def test_groups_are_named_by_index_or_by_name(attach: Attach, groups: Any) -> None:
    """One, several, or an iterator of them; a group that is named twice is changed once."""
    optimizer = noting(0.1, 0.2, names=("body", "head"))
    run = attach(optimizer)
    run.reduce_lr(0.5, groups=groups)
    optimizer.step()
    assert optimizer.used == [[0.1, 0.1]]


def test_an_optimizers_name_means_all_of_its_groups(attach: Attach) -> None:
    """With several optimizers an index means that group of each; a name with an index means one alone."""
    first, second = noting(0.1, 0.1), noting(0.2, 0.2)
    run = attach({"generator": first, "critic": second})
    run.reduce_lr(0.5, groups="critic")
    run.reduce_lr(0.1, groups=["generator/1"])
    run.reduce_lr(0.5, groups=[0])
    first.step()
    second.step()
    assert first.used == [[0.05, 0.1 * 0.1]]
    assert second.used == [[0.2 * 0.25, 0.1]]
    known = "0, 1, critic, generator, and OPTIMIZER/INDEX, such as critic/0"
    with pytest.raises(CommandRefusedError, match=f"there are {known}$"):
        run.reduce_lr(0.5, groups="discriminator")


@pytest.mark.parametrize("by_number", [list, lambda them: dict(enumerate(them))])
@pytest.mark.parametrize("index", [1, "1"])
def test_a_number_is_an_index_whatever_the_optimizers_are_called(attach: Attach, by_number: Any, index: Any) -> None:
    """Optimizers that go by number carry their class, so that 1 means group 1 of each and no optimizer."""
    first, second = noting(0.1, 0.1), noting(0.2, 0.2)
    run = attach(by_number([first, second]))
    run.reduce_lr(0.5, groups=[index])
    run.reduce_lr(0.1, groups=["Noting-1"])
    first.step()
    second.step()
    assert (first.used, second.used) == ([[0.1, 0.05]], [[0.2 * 0.1, 0.2 * 0.05]])


def test_a_text_that_fits_an_optimizer_and_a_group_means_the_optimizer(attach: Attach) -> None:
    """A group of another optimizer that has the same name is left alone; so is one whose name is another's index."""
    first, second = noting(0.1, 0.1, names=("critic", "0")), noting(0.2, 0.2)
    run = attach({"actor": first, "critic": second})
    run.reduce_lr(0.5, groups=["critic"])
    run.reduce_lr(0.1, groups=["0"])
    first.step()
    second.step()
    assert (first.used, second.used) == ([[0.1 * 0.1, 0.1]], [[0.2 * 0.05, 0.1]])


def test_the_groups_there_are_come_in_the_order_of_their_numbers(attach: Attach) -> None:
    """Eleven optimizers in a list: Noting-2 stands before Noting-10. A name may hold any number of digits, and is shown
    shortened."""
    run = attach([noting(0.1, names=("9" * 5000,)) if n == 10 else noting(0.1) for n in range(11)])
    known = ", ".join(
        ["0", as_name("9" * 5000), *(f"Noting-{n}" for n in range(11)), "and OPTIMIZER/INDEX, such as Noting-0/0"]
    )
    with pytest.raises(CommandRefusedError, match=f"there are {known}$"):
        run.reduce_lr(0.5, groups="critic")


@pytest.mark.parametrize("make", [float, torch.tensor, lambda lr: torch.tensor([lr], requires_grad=True)])
def test_the_floor_refuses_with_both_numbers_and_the_least_factor(attach: Attach, make: Callable[[float], Any]) -> None:
    """min_lr bounds the applied LR of a reduced group; the factor that the refusal names is accepted."""
    optimizer = noting(make(0.1))
    run = attach(optimizer, min_lr=0.02)
    with pytest.raises(CommandRefusedError) as caught:
        run.reduce_lr(0.1)
    assert "would bring the LR of Noting group 0 to 0.01, below min_lr=0.02" in str(caught.value)
    assert "a factor of at least 0.2" in str(caught.value)
    run.reduce_lr(0.2)
    optimizer.step()
    assert optimizer.used == [[pytest.approx(0.1 * 0.2, rel=1e-7)]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lr", [0.9, 0.7, 0.3, 0.1, 0.003])
def test_the_floor_bears_how_finely_a_tensor_tells_numbers_apart(attach: Attach, dtype: torch.dtype, lr: float) -> None:
    """A factor of 0.1 down to a floor of a tenth fits, although 0.9 is a little less than that in a tensor."""
    run = attach(noting(torch.tensor(lr, dtype=dtype)), min_lr=lr * 0.1)
    run.reduce_lr(0.1)
    with pytest.raises(CommandRefusedError, match="below min_lr"):
        run.reduce_lr(0.09)


def test_the_lr_of_a_tensor_elsewhere_is_not_read_for_the_floor() -> None:
    """Reading one on an accelerator would wait for it; reading this one, which has no values, would raise."""
    optimizer = noting(torch.empty((), device="meta"))
    LearningRates({"Noting": optimizer}, {"Noting": LRScaling(0.02)}, min_lr=0.02).check("reduce", 1e-9, None, 0)


_LRS = st.floats(1e-8, 10.0)


@settings(max_examples=300)
@given(
    st.lists(_LRS, min_size=1, max_size=3),
    st.floats(1e-6, 1.0),
    st.floats(0.01, 1.0),
    st.sampled_from(["reduce", "set"]),
)
@example([0.07], 0.02, 1.0, "reduce")
@example([0.06, 0.09], 0.02, 1.0, "reduce")
@example([0.09], 0.02, 0.3, "set")
@example([0.1], 0.03, 0.2, "reduce")
def test_the_factor_that_the_floor_names_is_accepted_and_hardly_more_than_needed(
    lrs: list[float], min_lr: float, first: float, action: str
) -> None:
    """Whatever the LRs: the named factor passes for all groups; one in its sixth digit lower does not."""
    optimizer = noting(*lrs)
    rates = LearningRates({"Noting": optimizer}, {"Noting": LRScaling(min_lr)}, min_lr=min_lr)
    for group in optimizer.param_groups:
        group["monitor_lr_factor"] = first
    with pytest.raises(CommandRefusedError) if min_lr <= max(lrs) else nullcontext() as caught:
        rates.check(action, 1e-9, None, 0)
    refusal = "" if caught is None else str(caught.value)
    if named := re.search(r"use a factor of at least (\S+)$", refusal):
        rates.check(action, float(named[1]), None, 0)
        with pytest.raises(CommandRefusedError):
            rates.check(action, float(named[1]) * (1 - 2.1e-5), None, 0)
    elif refusal:
        assert "is as low as the floor lets it be; name other groups" in refusal
        with pytest.raises(CommandRefusedError):
            rates.check(action, 1.0 - 1e-5, None, 0)


@pytest.mark.parametrize("make", [float, torch.tensor])
def test_the_floor_holds_while_the_schedule_falls(attach: Attach, make: Callable[[float], Any]) -> None:
    """A reduced LR stops at min_lr; a schedule that is below min_lr by itself is left alone."""
    optimizer = noting(make(0.1))
    run = attach(optimizer, min_lr=0.02)
    run.reduce_lr(0.25)
    for scheduled in (0.1, 0.04, 0.02, 0.005):
        if isinstance(optimizer.param_groups[0]["lr"], torch.Tensor):
            optimizer.param_groups[0]["lr"].fill_(scheduled)
        else:
            optimizer.param_groups[0]["lr"] = scheduled
        optimizer.step()
    assert [lrs[0] for lrs in optimizer.used] == pytest.approx([0.025, 0.02, 0.02, 0.005], rel=1e-6)
    assert run.lr[0].applied == pytest.approx(0.005, rel=1e-6)


def test_an_increase_is_for_runs_that_allow_it(attach: Attach) -> None:
    """With allow_increase a factor may be above 1; what is not finite may not."""
    optimizer = noting(0.1)
    run = attach(optimizer, allow_increase=True)
    run.set_lr_factor(4.0)
    optimizer.step()
    assert optimizer.used == [[0.4]]
    with pytest.raises(CommandRefusedError, match="got inf"):
        run.set_lr_factor(math.inf)
    with pytest.raises(CommandRefusedError, match="must stay between"):
        run.reduce_lr(1e100)


def test_many_reductions_end_at_a_refusal_not_at_zero(attach: Attach) -> None:
    """The product of the factors is bounded: the LR never becomes 0 by rounding."""
    optimizer = noting(0.1)
    run = attach(optimizer)
    for _ in range(3):
        run.reduce_lr(1e-30)
    optimizer.step()
    with pytest.raises(CommandRefusedError, match="to 1e-120; it must stay between"):
        run.reduce_lr(1e-30)


@pytest.mark.parametrize("lr", [torch.tensor(1), None, "0.1", True])
def test_a_group_without_an_lr_that_can_be_multiplied_is_refused(attach: Attach, lr: Any) -> None:
    """Better no command than one that is applied to half of the groups."""
    optimizer = noting(0.1, 0.2)
    run = attach(optimizer)
    optimizer.param_groups[1]["lr"] = lr
    with pytest.raises(CommandRefusedError, match="Noting group 1"):
        run.reduce_lr(0.5)
    run.reduce_lr(0.5, groups=[0])


def test_undo_without_a_change_is_rejected_at_its_step(attach: Attach) -> None:
    """Whether there is something to undo is known when its turn comes: a reduction may wait before it."""
    optimizer = noting(0.1)
    run = attach(optimizer)
    undo = run.undo_lr()
    reduce, again = run.reduce_lr(0.5), run.undo_lr()
    optimizer.step()
    assert (undo.status, undo.record.message) == ("rejected", "there is no change to undo")
    assert (reduce.status, again.status) == ("applied", "applied")
    assert optimizer.used == [[0.1]]


def test_a_group_that_has_gone_is_refused_when_its_turn_comes(attach: Attach) -> None:
    """A command is checked again at the step: the groups may have changed while it waited."""
    optimizer = noting(0.1, 0.2)
    run = attach(optimizer)
    command = run.reduce_lr(0.5, groups=[1])
    del optimizer.param_groups[1]
    optimizer.step()
    assert command.status == "rejected"
    assert "no param group 1; there are 0" in command.record.message


def test_the_sixty_fifth_waiting_command_is_refused(attach: Attach) -> None:
    """64 wait at most; with the next step there is room again."""
    optimizer = noting(0.1)
    run = attach(optimizer)
    for _ in range(64):
        run.set_lr_factor(0.5)
    with pytest.raises(QueueFullError, match="64 commands are waiting for the next optimizer step already"):
        run.set_lr_factor(0.5)
    optimizer.step()
    assert run.set_lr_factor(0.25).status == "pending"


def test_a_closed_run_takes_no_command(attach: Attach) -> None:
    """What waits when the run ends expires; what comes later is refused."""
    optimizer = noting(0.1)
    run = attach(optimizer)
    waiting = run.reduce_lr(0.5)
    run.close()
    assert (waiting.status, waiting.record.message) == ("expired", "the run ended before its next optimizer step")
    assert waiting.wait(0).status == "expired"
    with pytest.raises(ClosedRunError, match="the run has ended and takes no more commands; reduce was not applied"):
        run.reduce_lr(0.5)
    optimizer.step()
    assert optimizer.used == [[0.1]]


def test_ranks_without_a_store_take_no_command(attach: Attach, monkeypatch: pytest.MonkeyPatch) -> None:
    """They cannot agree: refused, without a field, as the run's state forbids it, and counted as an error of ours."""
    run = attach(noting(0.1))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    run.flush()
    for act in (lambda: run.reduce_lr(0.5), run.undo_lr, run.restore_lr):
        with pytest.raises(CommandRefusedError, match=r"the 2 ranks cannot agree on a step: .* group") as caught:
            act()
        assert caught.value.field is None
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    assert run.reduce_lr(0.5).status == "pending"
    assert run.snapshot().errors["control"] >= 1


def test_waiting_on_the_training_thread_is_refused_at_once(attach: Attach) -> None:
    """There it would never end; once the outcome is there, it is returned."""
    optimizer = noting(0.1)
    run = attach(optimizer)
    command = run.reduce_lr(0.5)
    with pytest.raises(monitor.MonitorError, match="is applied at the next optimizer step, which this thread makes"):
        command.wait(60)
    optimizer.step()
    assert command.wait().status == "applied"
    assert repr(command) == f"<Command {command.id} reduce applied>"
