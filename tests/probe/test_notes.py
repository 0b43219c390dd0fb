"""What follows from the notes of a ledger: the loss of a step, and where its time went."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from monitor.probe import current_ledger
from monitor.probe._ledger import Ledger
from monitor.probe._notes import Kind, Logged, last_backward, losses_of, phases_of

X = torch.tensor([[1.0, -2.0, 0.5]])


def note(what: object, mark: float = 0.0, start: float = 0.0, begin: float = 0.0) -> tuple[float, float, float, object]:
    return mark, start, begin, what


@pytest.mark.parametrize(
    ("whats", "losses"),
    [
        ([], []),
        ([0.5, Kind.STEP], [0.5]),
        ([0.5, Kind.WAIT, 0.25, Kind.OURS, Kind.STEP], [0.5, 0.25]),
        ([(0.5, 0.25), 1.0, Kind.STEP], [0.5, 0.25, 1.0]),
        ([0.5, None, Kind.STEP], [0.5, None]),
        ([Kind.BACKWARD, Kind.STEP], []),
        ([0.5, Kind.STEP, 0.25, Kind.STEP], [0.25]),
        ([0.5, Logged(7.0), 0.25, Kind.STEP], [7.0]),
        ([Kind.STEP, 0.5, 0.25], [0.5, 0.25]),
    ],
    ids=[
        "none",
        "one",
        "others between",
        "several at once",
        "one unknown",
        "no loss",
        "a failed step",
        "logged",
        "open",
    ],
)
def test_losses_of_the_last_step(whats: list[object], losses: list[float | None]) -> None:
    """What was back-propagated since the step before, in order; a step that failed keeps what was its own."""
    assert losses_of([note(what) for what in whats]) == losses


def test_losses_from_a_note_on() -> None:
    """What an optimizer's zero_grad has thrown away does not count, what the user has logged does."""
    assert losses_of([note(1.0), note(2.0), note(4.0), note(Kind.STEP)], 1) == [2.0, 4.0]
    assert losses_of([note(Logged(8.0)), note(2.0), note(Kind.STEP)], 1) == [8.0]


def test_phases_are_the_spans_between_the_notes() -> None:
    """Every moment between two steps belongs to one phase: seconds in the order data, forward, backward, optimizer,
    monitor, other."""
    notes = [
        note(Kind.WAIT, 100.0, 101.0, 101.0),  # 1 other, 2 data
        note(0.5, 103.0, 107.0, 107.5),  # 4 forward, 0.5 monitor, 8 backward
        note(Kind.OURS, 115.5, 116.5, 116.75),  # 1 other, 0.25 monitor, 0.25 other
        note(Kind.STEP, 117.0, 119.0, 119.5),  # 2 other, 0.5 monitor; the step itself lasts until it is done
    ]
    clip = ("norm", 1.0, (), (), None, 117.5, 118.0)  # 0.5 of the last span was the monitor's
    phases = phases_of(notes, 119.5, 135.5, 135.75, [clip])
    assert phases == (2.0, 4.0, 8.0, 16.0, 0.5 + 0.25 + 0.5 + 0.5 + 0.25, 1.0 + 1.25 + 2.0 - 0.5)
    assert sum(phases) == 135.75 - 100.0
    assert phases_of([], 1.0, 3.0, 3.5, ()) == (0.0, 0.0, 0.0, 2.0, 0.5, 0.0)


def test_last_backward_before_a_moment() -> None:
    """Only what was back-propagated counts, and only before that moment."""
    notes = [note(1.0, start=1.0), note(Kind.BACKWARD, start=2.0), note(Kind.WAIT, start=3.0), note(2.0, start=5.0)]
    assert [last_backward(notes, before) for before in (0.5, 1.5, 4.0, 9.0)] == [0.0, 1.0, 2.0, 5.0]


def test_waits_without_anything_between_them_make_one_note() -> None:
    """An evaluation that goes through any number of batches leaves one note, with all of its waiting."""
    ledger = Ledger()
    ledger.mark = begun = 64.0
    for _ in range(1000):
        ledger.note_waiting(ledger.mark + 0.25, ledger.mark + 1.0)
    assert len(ledger.notes) == 1
    assert ledger.mark == begun + 1000
    data, *_, other = phases_of(ledger.notes, ledger.mark, ledger.mark, ledger.mark, ())
    assert (data, other) == (750.0, 250.0)


def test_a_step_without_a_clip_has_none_of_the_next_ones(watch) -> None:
    """What is clipped after a step belongs to the next one, also when both are read afterwards."""
    net = nn.Linear(3, 2)
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    watched = watch(opt, gradient_norm="off")
    for is_clipped in (False, True):
        net(X).pow(2).sum().backward()
        if is_clipped:
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        opt.step()
    assert [len(step.clips) for step in watched.drain()] == [0, 1]


def test_a_step_inside_backward_has_its_loss(watch) -> None:
    """An optimizer that steps in a hook of its gradient applies the loss that is being back-propagated, and the phases
    of the steps are still all of the time."""
    weight = nn.Parameter(torch.ones(2))
    opt = torch.optim.SGD([weight], lr=0.1)
    watched = watch(opt)

    def update(_: torch.Tensor) -> None:
        opt.step()
        opt.zero_grad()

    weight.register_post_accumulate_grad_hook(update)
    losses = []
    for _ in range(3):
        loss = weight.square().sum()
        loss.backward()
        losses.append(loss.item())
    steps = watched.drain()
    assert [step.loss for step in steps] == losses
    for step in steps[1:]:
        assert min(step.phases.values()) >= 0
        assert sum(step.phases.values()) == pytest.approx(step.duration, rel=1e-6)


def test_a_failed_backward_is_no_loss(watch) -> None:
    """What torch refuses to back-propagate is not counted; its time is."""
    weight = nn.Parameter(torch.ones(2))
    opt = torch.optim.SGD([weight], lr=0.1)
    watched = watch(opt)
    opt.step()
    loss = weight.square().sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
    opt.step()
    step = watched.last()
    assert step.loss == loss.item()
    assert sum(step.phases.values()) == pytest.approx(step.duration, rel=1e-6)


def test_a_loss_without_a_value_is_unknown(watch) -> None:
    """A meta tensor holds no value: the step is there, its loss is not, and nothing is reported."""
    weight = nn.Parameter(torch.ones(2, device="meta"))
    opt = torch.optim.SGD([weight], lr=0.1)
    watched = watch(opt)
    weight.square().sum().backward()
    assert current_ledger().is_open
    opt.step()
    assert watched.last().loss is None
