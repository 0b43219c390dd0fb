"""What follows from the spans of a thread: where the time of a step went; and what two optimizers share."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from monitor.link import Kind
from monitor.probe._trace import Trace
from monitor.recorder._phases import phases_of

X = torch.tensor([[1.0, -2.0, 0.5]])


def span(what: object, mark: float = 0.0, start: float = 0.0, begin: float = 0.0) -> tuple[float, float, float, object]:
    return mark, start, begin, what


def test_phases_are_the_times_of_the_spans() -> None:
    """Every moment between two steps belongs to one phase: seconds in the order data, forward, backward, optimizer,
    monitor, other."""
    spans = [
        span(Kind.WAIT, 100.0, 101.0, 101.0),  # 1 other, 2 data
        span(Kind.BACKWARD, 103.0, 107.0, 107.5),  # 4 forward, 0.5 monitor, 8 backward
        span(Kind.OURS, 115.5, 116.5, 116.75),  # 1 other, 0.25 monitor, 0.25 other
        span(Kind.STEP, 117.0, 119.0, 119.5),  # 2 other, 0.5 monitor; the step itself lasts until it is done
    ]
    clip = ("norm", 1.0, (), (), None, 117.5, 118.0)  # 0.5 of the last span was the monitor's
    phases = phases_of(spans, 119.5, 135.5, 135.75, [clip])
    assert phases == (2.0, 4.0, 8.0, 16.0, 0.5 + 0.25 + 0.5 + 0.5 + 0.25, 1.0 + 1.25 + 2.0 - 0.5)
    assert sum(phases) == 135.75 - 100.0
    assert phases_of([], 1.0, 3.0, 3.5, ()) == (0.0, 0.0, 0.0, 2.0, 0.5, 0.0)


def test_no_phase_of_a_threads_first_step_is_negative() -> None:
    """The mark that the first backward pass begins at is set after that pass has begun: there was no forward yet."""
    assert phases_of([(1.5, 1.0, 2.0, Kind.BACKWARD)], 4.0, 5.0, 5.0, ()) == (0.0, 0.0, 2.0, 1.0, 1.0, 0.0)


def test_waits_without_anything_between_them_make_one_span() -> None:
    """An evaluation that goes through any number of batches leaves one span, with all of its waiting."""
    trace = Trace()
    trace.mark = begun = 64.0
    for _ in range(1000):
        trace.add_waiting(trace.mark + 0.25, trace.mark + 1.0)
    assert len(trace.spans) == 1
    assert trace.mark == begun + 1000
    data, *_, other = phases_of(trace.spans, trace.mark, trace.mark, trace.mark, ())
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
    assert watched.probes[0].attribution.is_pending
    opt.step()
    assert watched.last().loss is None


def steps_by_name(watched) -> dict[str, list[tuple[float | None, float | None]]]:
    found: dict[str, list[tuple[float | None, float | None]]] = {}
    for step in watched.drain():
        found.setdefault(step.optimizer, []).append((step.loss, step.gradient_norm))
    return found


class Clipping(torch.optim.SGD):
    """Clips inside its step."""

    def step(self, closure=None):
        nn.utils.clip_grad_norm_(self.param_groups[0]["params"], 0.5)
        return super().step(closure)


class Failing(torch.optim.SGD):
    """Fails when it is told to, after its closure if it has one."""

    fails = True

    def step(self, closure=None):
        if self.fails:
            if closure is not None:
                with torch.enable_grad():
                    closure()
            raise ArithmeticError
        return super().step(closure)


class Wrapping(torch.optim.SGD):
    """Has another optimizer make its step."""

    base: torch.optim.Optimizer

    def step(self, closure=None):
        return self.base.step(closure)


def scalars(num: int) -> list[nn.Parameter]:
    return [nn.Parameter(torch.tensor(1.0)) for _ in range(num)]


def test_each_of_two_optimizers_has_the_norm_of_its_last_clip(watch) -> None:
    """Clips before a further backward are out of date for the optimizer that steps second, too."""
    a, b = scalars(2)
    first, second = torch.optim.SGD([a], lr=0.0), torch.optim.SGD([b], lr=0.0)
    watched = watch(first, second)
    for k in (1.0, 2.0, 3.0):
        (k * a + k * b).backward()
        nn.utils.clip_grad_norm_([a], 100.0)
        nn.utils.clip_grad_norm_([b], 100.0)
    first.step()
    second.step()
    assert steps_by_name(watched) == {"0": [(12.0, 6.0)], "1": [(12.0, 6.0)]}


def test_what_is_noted_within_a_step_leaves_its_loss_and_norm(watch) -> None:
    """A step that clips, or that another optimizer makes for it, has the loss and norm it began with; so has whoever
    shares them."""
    a, b = scalars(2)
    one, other = Clipping([a], lr=0.0), torch.optim.SGD([b], lr=0.0)
    watched = watch(one, other, gradient_norm=1)
    (3 * a + 4 * b).backward()
    nn.utils.clip_grad_norm_([a], 2.0)
    one.step()
    other.step()
    assert steps_by_name(watched) == {"0": [(7.0, 3.0)], "1": [(7.0, 4.0)]}


def test_a_wrapping_optimizer_shares_the_loss_of_its_base(watch) -> None:
    """Where both are watched, both have it."""
    (a,) = scalars(1)
    outer, base = Wrapping([a], lr=0.0), torch.optim.SGD([a], lr=0.0)
    outer.base = base
    watched = watch(outer, base)
    (3 * a).backward()
    outer.step()
    assert {name: steps[0][0] for name, steps in steps_by_name(watched).items()} == {"0": 3.0, "1": 3.0}


def test_a_logged_loss_makes_no_clip_out_of_date(watch) -> None:
    """What the user logs between a clip and another is no backward."""
    a, b = scalars(2)
    optimizer = torch.optim.SGD([a, b], lr=0.0)
    watched = watch(optimizer, gradient_norm=1)
    (3 * a + 4 * b).backward()
    nn.utils.clip_grad_norm_([a, b], 1.0)
    watched.probes[0].attribution.log(7.0)
    nn.utils.clip_grad_value_([a, b], 0.5)
    optimizer.step()
    assert steps_by_name(watched)["SGD"] == [(7.0, 5.0)]


def test_a_failed_step_keeps_its_loss_and_leaves_it_to_those_who_share_it(watch) -> None:
    """The next step has its own loss alone."""
    a, b, c = scalars(3)
    failing, *others = Failing([a], lr=0.0), torch.optim.SGD([b], lr=0.0), torch.optim.SGD([c], lr=0.0)
    watched = watch(failing, *others)
    (3 * a + 0 * b + 0 * c).backward()
    with pytest.raises(ArithmeticError):
        failing.step()
    for other in others:
        other.step()
    failing.fails = False
    (5 * a).backward()
    failing.step()
    losses = {name: [loss for loss, _ in steps] for name, steps in steps_by_name(watched).items()}
    assert losses == {"0": [5.0], "1": [3.0], "2": [3.0]}


def test_a_failed_step_with_a_closure_keeps_its_loss(watch) -> None:
    """What a closure has back-propagated before its step failed is none of the next step's."""
    (a,) = scalars(1)
    optimizer = Failing([a], lr=0.0)
    watched = watch(optimizer)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = 5 * a
        loss.backward()
        return loss

    with pytest.raises(ArithmeticError):
        optimizer.step(closure)
    optimizer.zero_grad()
    optimizer.fails = False
    for _ in range(2):
        (1 * a).backward()
        optimizer.step()
    steps = watched.drain()
    assert [step.loss for step in steps] == [1.0, 1.0]
    assert sum(steps[-1].phases.values()) == pytest.approx(steps[-1].duration, rel=1e-6)


def test_an_error_of_ours_before_a_step_leaves_the_others_their_loss(watch) -> None:
    """A factor that cannot be is reported; the optimizer that shares the loss has it, and no time is lost."""
    a, b = scalars(2)
    bad, good = torch.optim.SGD([a], lr=0.0), torch.optim.SGD([b], lr=0.0)
    watched = watch(bad, good)
    good.step()
    (3 * a + 4 * b).backward()
    bad.param_groups[0]["monitor_lr_factor"] = "bad"
    bad.step()
    assert watched.errors
    watched.errors.clear()
    good.step()
    _, step = (step for step in watched.drain() if step.optimizer == "1")
    assert step.loss == 7.0
    assert sum(step.phases.values()) == pytest.approx(step.duration, rel=1e-6)
