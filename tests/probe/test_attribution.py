"""The loss of a step is that of the backward passes whose gradients it applies, whoever clears, scales or sets them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from monitor.probe import _attribution, _patches
from monitor.probe._alteration import multiplier, root_factor
from monitor.probe._attribution import NUM_ASSUMED, NUM_LEARNING, NUM_LOOKS
from monitor.probe._graph import reaches

X = torch.tensor([[1.0, -2.0, 0.5]])
LONG = NUM_LEARNING + 4
"""Steps after which the witnesses have been chosen."""


def scalars(*values: float) -> list[nn.Parameter]:
    return [nn.Parameter(torch.tensor(value)) for value in values]


def losses(watched: Any) -> dict[str, list[float | None]]:
    found: dict[str, list[float | None]] = {}
    for step in watched.drain():
        found.setdefault(step.optimizer, []).append(step.loss)
    return found


def set_to_none(net: nn.Module, _: Any) -> None:
    for parameter in net.parameters():
        parameter.grad = None


def zero_by_hand(net: nn.Module, _: Any) -> None:
    for parameter in net.parameters():
        parameter.grad.zero_()


CLEARS: dict[str, Callable[[Any, Any], None]] = {
    "optimizer": lambda _, opt: opt.zero_grad(),
    "optimizer, in place": lambda _, opt: opt.zero_grad(set_to_none=False),
    "module": lambda net, _: net.zero_grad(),
    "module, in place": lambda net, _: net.zero_grad(set_to_none=False),
    "another optimizer": lambda net, _: torch.optim.SGD(net.parameters(), lr=1.0).zero_grad(),
    "None": set_to_none,
    "zero_ by hand": zero_by_hand,
    "_foreach_zero_": lambda net, _: torch._foreach_zero_([p.grad for p in net.parameters()]),
}


@pytest.mark.parametrize("clear", CLEARS.values(), ids=CLEARS)
def test_gradients_thrown_away_take_their_losses_along(watch: Any, clear: Callable[[Any, Any], None]) -> None:
    """In whatever way they are cleared, before and after the witnesses are chosen; a NaN among them is not shown."""
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    opt = torch.optim.SGD(net.parameters(), lr=0.0)
    watched = watch(opt)
    expected = []
    for i in range(LONG):
        (net(X).sum() * 0 + (7.0 if i % 2 else float("nan"))).backward()
        clear(net, opt)
        loss = net(X).pow(2).sum() + i
        loss.backward()
        opt.step()
        opt.zero_grad()
        expected.append(loss.item())
    assert losses(watched) == {"SGD": expected}


@pytest.mark.parametrize("owner", ["optimizer", "module"])
def test_gradients_zeroed_in_place_on_a_device_are_noticed(
    watch: Any, owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a gradient cannot be read without waiting, zero_grad itself tells."""
    monkeypatch.setattr(_patches, "has_no_accelerator", lambda: False)
    monkeypatch.setattr(_attribution, "is_zeroed", lambda _: False)
    net = nn.Linear(3, 2)
    opt = torch.optim.SGD(net.parameters(), lr=0.0)
    watched = watch(opt)
    for _ in range(LONG):
        (net(X).sum() + 100.0).backward()
        (opt if owner == "optimizer" else net).zero_grad(set_to_none=False)
        (net(X).sum() * 0 + 1.0).backward()
        opt.step()
        opt.zero_grad(set_to_none=False)
    assert losses(watched) == {"SGD": [1.0] * LONG}


def test_a_step_on_cleared_gradients_has_no_loss(watch: Any) -> None:
    """Who clears the gradients of a bad batch and steps all the same applies nothing."""
    net = nn.Linear(3, 2)
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    watched = watch(opt)
    for i in range(LONG):
        loss = net(X).pow(2).sum()
        loss.backward()
        if i == LONG - 1:
            opt.zero_grad()
        opt.step()
        opt.zero_grad()
    assert [loss is None for loss in losses(watched)["SGD"]] == [False] * (LONG - 1) + [True]


def test_backward_of_all_then_step_of_all(watch: Any) -> None:
    """Each of two optimizers has the loss that reached its own parameters; one that reaches both belongs to both."""
    actor, critic = scalars(2.0, 3.0)
    watched = watch(torch.optim.SGD([actor], lr=0.0), torch.optim.SGD([critic], lr=0.0))
    a, c = (probe.optimizer for probe in watched.probes)
    for i in range(LONG):
        for opt in (a, c):
            opt.zero_grad()
        (actor * (i + 1)).backward()
        (critic * 10).backward()
        (actor + critic).backward()
        a.step()
        c.step()
    expected = {"0": [2.0 * (i + 1) + 5 for i in range(LONG)], "1": [35.0] * LONG}
    assert losses(watched) == expected


def step_in_backward(parameter: Any, optimizer: Any) -> None:
    def step(_: Any) -> None:
        optimizer.step()
        optimizer.zero_grad()

    parameter.register_post_accumulate_grad_hook(step)


@pytest.mark.parametrize("is_inside", [True, False])
def test_many_optimizers_that_every_pass_reaches(watch: Any, is_inside: bool) -> None:
    """One optimizer a parameter, stepped inside backward or after it: each step has the loss of its own pass."""
    parameters = scalars(*map(float, range(1, 9)))
    watched = watch(*(torch.optim.SGD([p], lr=0.0) for p in parameters))
    optimizers = [probe.optimizer for probe in watched.probes]
    for parameter, optimizer in zip(parameters, optimizers, strict=True) if is_inside else ():
        step_in_backward(parameter, optimizer)
    for i in range(3 * LONG):
        (sum(parameters) * (i + 1)).backward()
        for optimizer in () if is_inside else optimizers:
            optimizer.step()
            optimizer.zero_grad()
    expected = [36.0 * (i + 1) for i in range(3 * LONG)]
    assert losses(watched) == {str(i): expected for i in range(8)}
    assert [probe.attribution.num_unreached for probe in watched.probes] == [0] * 8


@pytest.mark.parametrize("is_cleared", [True, False])
def test_a_pass_that_reaches_one_of_two_after_many_that_reached_both(watch: Any, is_cleared: bool) -> None:
    """The other one's step has nothing of it, whether or not its gradient of the step before still stands."""
    a, b = scalars(2.0, 3.0)
    watched = watch(torch.optim.SGD([a], lr=0.0), torch.optim.SGD([b], lr=0.0))
    first, second = (probe.optimizer for probe in watched.probes)
    for i in range(3 * LONG):
        if i == 2 * LONG:
            (a * 10).backward()
            first.step()
            first.zero_grad()
        (a + b).backward()
        first.step()
        first.zero_grad()
        second.step()
        if is_cleared or i != 2 * LONG - 1:
            second.zero_grad()
    expected = [5.0] * (3 * LONG)
    assert losses(watched) == {"0": [*expected[: 2 * LONG], 20.0, *expected[2 * LONG :]], "1": expected}
    assert watched.probes[1].attribution.num_discarded == 0


@pytest.mark.parametrize("change", ["scaled", "clipped", "cleared", "replaced"])
def test_one_of_several_whose_gradient_the_loop_changes(watch: Any, change: str) -> None:
    """What a loop does to one optimizer's gradient, after many steps without it, counts for that one."""
    a, b = scalars(2.0, 3.0)
    watched = watch(torch.optim.SGD([a], lr=0.0), torch.optim.SGD([b], lr=0.0))
    first, second = (probe.optimizer for probe in watched.probes)
    for i in range(2 * LONG):
        (a * a + b * b).backward()
        if i == 2 * LONG - 1:
            if change == "scaled":
                b.grad *= 0.5
            elif change == "clipped":
                torch.nn.utils.clip_grad_norm_([b], 0.1)
            elif change == "cleared":
                second.zero_grad()
                (b * 7).backward()
            else:
                b.grad = b.grad * 2
        first.step()
        second.step()
        first.zero_grad()
        second.zero_grad()
    found = losses(watched)
    last = {"scaled": None, "clipped": 13.0, "cleared": 21.0, "replaced": None}[change]
    assert found["0"] == [13.0] * (2 * LONG)
    assert found["1"][:-1] == [13.0] * (2 * LONG - 1)
    assert found["1"][-1] == last


def test_a_generators_pass_through_the_discriminator_is_not_the_discriminators(watch: Any) -> None:
    """What reaches it and is cleared before its own step is not its loss."""
    gen, disc = scalars(2.0, 3.0)
    watched = watch(torch.optim.SGD([gen], lr=0.0), torch.optim.SGD([disc], lr=0.0))
    opt_g, opt_d = (probe.optimizer for probe in watched.probes)
    for _ in range(LONG):
        opt_d.zero_grad()
        (disc * 10).backward()
        opt_d.step()
        opt_g.zero_grad()
        (gen * disc).backward()
        opt_g.step()
    assert losses(watched) == {"0": [6.0] * LONG, "1": [30.0] * LONG}


def test_different_accumulation(watch: Any) -> None:
    """Two optimizers that accumulate over different numbers of micro-batches each have all of their own."""
    a, b = scalars(1.0, 1.0)
    watched = watch(torch.optim.SGD([a], lr=0.0), torch.optim.SGD([b], lr=0.0))
    first, second = (probe.optimizer for probe in watched.probes)
    for i in range(12):
        (a + b * 100).backward()
        if i % 2:
            first.step()
            first.zero_grad()
        if i % 3 == 2:
            second.step()
            second.zero_grad()
    assert losses(watched) == {"0": [202.0] * 6, "1": [303.0] * 4}


def test_a_loss_of_somebody_elses_training_is_not_counted(watch: Any) -> None:
    """Backward passes that reach nothing of the attached optimizer, from the first on or later."""
    mine, other = scalars(2.0, 3.0)
    opt = torch.optim.SGD([mine], lr=0.0)
    watched = watch(opt)
    for i in range(4 * LONG):
        if i % 4 == 0 or i > 2 * LONG:
            (other * 100).backward()
        mine.square().backward()
        opt.step()
        opt.zero_grad()
    assert losses(watched) == {"SGD": [4.0] * (4 * LONG)}


def test_a_loss_that_reaches_other_parameters_later_is_counted(watch: Any) -> None:
    """One optimizer for two networks that are back-propagated apart, the second from some step on."""
    first, second = scalars(2.0, 3.0)
    opt = torch.optim.SGD([first, second], lr=0.0)
    watched = watch(opt)
    for i in range(3 * LONG):
        first.square().backward()
        if i >= LONG:
            second.square().backward()
        opt.step()
        opt.zero_grad()
    assert losses(watched) == {"SGD": [4.0] * LONG + [13.0] * (2 * LONG)}


def test_micro_batches_before_a_closure_count(watch: Any) -> None:
    """Lightning's automatic optimization accumulates before the step and back-propagates the last part inside it; its
    manual optimization hands over a closure that does nothing."""
    (weight,) = scalars(1.0)
    opt = torch.optim.AdamW([weight], lr=0.0)
    watched = watch(opt)
    for i in range(LONG):

        def last_part(i: int = i) -> torch.Tensor:
            loss = weight * (i + 1)
            loss.backward()
            return loss

        (weight * 10).backward()
        opt.step(last_part if i % 2 else lambda: None)
        opt.zero_grad()
    assert losses(watched) == {"AdamW": [10.0 + (i + 1 if i % 2 else 0) for i in range(LONG)]}


def test_a_closure_that_clears_starts_anew(watch: Any) -> None:
    """LBFGS: what was back-propagated before is cleared by the closure, and the first evaluation counts."""
    (weight,) = scalars(3.0)
    opt = torch.optim.LBFGS([weight], lr=0.1, max_iter=3)
    watched = watch(opt)

    def closure() -> torch.Tensor:
        opt.zero_grad()
        loss = weight.square()
        loss.backward()
        return loss

    (weight * 1000).backward()
    opt.step(closure)
    assert losses(watched) == {"LBFGS": [9.0]}


def test_a_scalar_with_a_gradient_of_its_own_is_multiplied_by_it(watch: Any) -> None:
    """The gradient that the step applies is that of the product; of a vector nothing is known."""
    weight = nn.Parameter(torch.tensor([2.0, 3.0]))
    opt = torch.optim.SGD([weight], lr=0.0)
    watched = watch(opt)
    for how in (torch.tensor(1.0), torch.tensor(0.5)):
        weight.sum().backward(gradient=how)
        opt.step()
        opt.zero_grad()
    weight.backward(gradient=torch.ones(2))
    opt.step()
    assert losses(watched) == {"SGD": [5.0, 2.5, None]}


def test_gradients_set_by_hand_have_no_loss(watch: Any) -> None:
    """torch.autograd.grad and torch.func go past backward; no earlier loss is shown in their place."""
    (weight,) = scalars(2.0)
    opt = torch.optim.SGD([weight], lr=0.0)
    watched = watch(opt)
    weight.square().backward()
    opt.step()
    for _ in range(3):
        (weight.grad,) = torch.autograd.grad(weight.square(), weight)
        opt.step()
    assert losses(watched) == {"SGD": [4.0, None, None, None]}


class Tagged(torch.Tensor):
    """A subclass with ordinary storage, as fastai and torchvision have."""


def test_a_subclass_of_tensor_is_read(watch: Any) -> None:
    """Its value is that of the plain tensor."""
    (weight,) = scalars(2.0)
    opt = torch.optim.SGD([weight], lr=0.0)
    watched = watch(opt)
    weight.square().as_subclass(Tagged).backward()
    opt.step()
    assert losses(watched) == {"SGD": [4.0]}


@pytest.mark.parametrize("in_place", [True, False])
def test_a_loss_scaled_by_hand_is_shown_unscaled(watch: Any, in_place: bool) -> None:
    """What it was divided by shows in the gradients."""
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    opt = torch.optim.SGD(net.parameters(), lr=0.01)
    watched = watch(opt)
    expected: list[Any] = []
    for _ in range(LONG):
        loss = net(X).pow(2).sum()
        (loss * 1024).backward()
        for p in net.parameters():
            if in_place:
                p.grad.div_(1024)
            else:
                p.grad = p.grad / 1024
        opt.step()
        opt.zero_grad()
        expected.append(pytest.approx(loss.item()))
    assert losses(watched) == {"SGD": expected}


def test_a_loss_scaled_by_hand_later_is_unknown_once(watch: Any) -> None:
    """Where the witnesses have been chosen there is nothing to compare with, the first time."""
    (weight,) = scalars(5.0)
    opt = torch.optim.SGD([weight], lr=0.0)
    watched = watch(opt)
    for i in range(2 * LONG):
        scale = 8.0 if i >= LONG else 1.0
        (weight.square() * scale).backward()
        if scale != 1.0:
            weight.grad.div_(scale)
        opt.step()
        opt.zero_grad()
    assert losses(watched) == {"SGD": [25.0] * LONG + [None] + [25.0] * (LONG - 1)}


def test_a_gradient_put_elsewhere_is_the_same_gradient(watch: Any) -> None:
    """DistributedDataParallel moves the gradients into its buckets before the second pass."""
    (weight,) = scalars(5.0)
    opt = torch.optim.SGD([weight], lr=0.0)
    watched = watch(opt)
    for i in range(3):
        for _ in range(2):
            (weight.square() * 2).backward()
            if i == 0:
                weight.grad = weight.grad.clone()
        opt.step()
        opt.zero_grad()
    assert losses(watched) == {"SGD": [100.0] * 3}


def test_a_clip_by_hand_leaves_the_loss(watch: Any) -> None:
    """It is known for no scaling."""
    (weight,) = scalars(5.0)
    opt = torch.optim.SGD([weight], lr=0.0)
    watched = watch(opt)
    for _ in range(LONG):
        weight.square().backward()
        weight.grad.clamp_(-1.0, 1.0)
        opt.step()
        opt.zero_grad()
    assert losses(watched) == {"SGD": [25.0] * LONG}


def test_a_mean_over_micro_batches_taken_of_the_gradients(watch: Any) -> None:
    """Who divides the summed gradients by the number of micro-batches applies the mean loss."""
    (weight,) = scalars(5.0)
    opt = torch.optim.SGD([weight], lr=0.0)
    watched = watch(opt)
    for _ in range(LONG):
        for factor in (1.0, 2.0, 3.0, 4.0):
            (weight.square() + 0 * factor).backward()
        weight.grad /= 4
        opt.step()
        opt.zero_grad()
    assert losses(watched) == {"SGD": [25.0] * LONG}


def test_a_clip_of_torchs_and_an_unscaling_are_no_alteration(watch: Any) -> None:
    """The loss is known at every step, the first included."""
    (weight,) = scalars(5.0)
    opt = torch.optim.SGD([weight], lr=0.0)
    watched = watch(opt)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for i in range(LONG):
        if i % 2:
            scaler.scale(weight.square()).backward()
            scaler.step(opt)
            scaler.update()
        else:
            weight.square().backward()
            nn.utils.clip_grad_norm_([weight], 1.0)
            nn.utils.clip_grad_value_([weight], 0.5)
            opt.step()
        opt.zero_grad()
    assert losses(watched) == {"SGD": [25.0] * LONG}


def test_a_gradient_that_is_zero_by_nature_is_not_taken_for_cleared(watch: Any) -> None:
    """A loss that happens to have no gradient, or a parameter that it does not depend on, whatever scales it."""
    gate, weight = scalars(0.0, 2.0)
    opt = torch.optim.SGD([gate, weight], lr=0.0)
    watched = watch(opt)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for i in range(2 * LONG):
        loss = weight * 2 + gate * 0 if i < LONG else (weight + gate) * 0 + 4
        scaler.scale(loss).backward()
        scaler.step(opt)
        scaler.update()
        opt.zero_grad()
    assert losses(watched) == {"SGD": [4.0] * (2 * LONG)}


def test_a_clip_by_hand_of_a_zero_gradient_among_others_clears_nothing(watch: Any) -> None:
    """The smallest parameter, the one that is looked at, has a gradient of zero."""
    gate, weight = nn.Parameter(torch.tensor(0.0)), nn.Parameter(torch.ones(3))
    opt = torch.optim.SGD([gate, weight], lr=0.0)
    watched = watch(opt)
    for _ in range(LONG):
        (weight.sum() + gate * 0).backward()
        for p in (gate, weight):
            p.grad.mul_(0.5)
        opt.step()
        opt.zero_grad()
    assert losses(watched) == {"SGD": [3.0] * LONG}


def test_overlapping_backward_passes_of_threads_are_told_apart(watch: Any) -> None:
    """Two models, two optimizers, two threads that are inside backward at the same time."""
    weights = scalars(1.0, 1.0)
    watched = watch(*(torch.optim.SGD([w], lr=0.0) for w in weights))
    barrier = threading.Barrier(2)

    class Meet(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            barrier.wait(60)
            return gradients[0]

    def train(i: int) -> None:
        for _ in range(LONG):
            (Meet.apply(weights[i]) * (i + 1)).backward()
            watched.probes[i].optimizer.step()
            watched.probes[i].optimizer.zero_grad()

    threads = [threading.Thread(target=train, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert losses(watched) == {"0": [1.0] * LONG, "1": [2.0] * LONG}


def test_a_step_on_another_thread_has_the_loss(watch: Any) -> None:
    """Back-propagated on one thread, applied on another."""
    (weight,) = scalars(2.0)
    opt = torch.optim.SGD([weight], lr=0.0)
    watched = watch(opt)
    for _ in range(LONG):
        weight.square().backward()
        thread = threading.Thread(target=opt.step)
        thread.start()
        thread.join()
        opt.zero_grad()
    assert losses(watched) == {"SGD": [4.0] * LONG}


def test_a_step_beside_another_threads_is_counted_and_leaves_the_lr(watch: Any) -> None:
    """Hogwild: a step that begins inside another of the same optimizer is dropped and counted; the factor stays in
    force for both, and the schedule's LR is back after the last one has ended."""
    inside, go = threading.Event(), threading.Event()
    used = []

    class Slow(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            if threading.current_thread() is not threading.main_thread():
                inside.set()
                go.wait(60)
            used.append(self.param_groups[0]["lr"])

    (weight,) = scalars(2.0)
    opt = Slow([weight], lr=1.0)
    watched = watch(opt)
    opt.param_groups[0]["monitor_lr_factor"] = 0.5
    first = threading.Thread(target=opt.step)
    first.start()
    inside.wait(60)
    opt.step()
    assert opt.param_groups[0]["lr"] == 0.5  # the first is still inside
    go.set()
    first.join()
    assert opt.param_groups[0]["lr"] == 1.0
    opt.step()
    assert used == [0.5] * 3
    assert [step.groups[0].applied for step in watched.drain()] == [0.5, 0.5]
    assert watched.source.num_dropped == 1


def test_an_initial_step_is_no_step(watch: Any) -> None:
    """torch.distributed.checkpoint makes the state of an optimizer by a step with an LR and gradients of 0."""
    (weight,) = scalars(2.0)
    opt = torch.optim.Adam([weight], lr=0.0)
    watched = watch(opt)
    weight.grad = torch.zeros_like(weight)
    opt.step()
    opt.zero_grad()
    opt.param_groups[0]["lr"] = 0.1
    weight.square().backward()
    opt.step()
    assert [(step.number, step.loss) for step in watched.drain()] == [(1, 4.0)]


def test_a_warm_up_from_zero_is_counted(watch: Any) -> None:
    """A step with an LR of 0 and a loss is one."""
    (weight,) = scalars(2.0)
    opt = torch.optim.Adam([weight], lr=0.0)
    watched = watch(opt)
    weight.square().backward()
    opt.step()
    assert [(step.number, step.loss) for step in watched.drain()] == [(1, 4.0)]


def test_the_graph_tells_what_a_loss_reaches() -> None:
    """Also after the backward pass, for as long as the loss is there."""
    a, b = scalars(1.0, 2.0)
    loss = (a * 3).exp() + 1
    assert reaches(loss, {id(a)})
    assert not reaches(loss, {id(b)})
    loss.backward()
    assert reaches([loss], {id(a), id(b)})
    assert not reaches(torch.tensor(1.0), {id(a)})


@pytest.mark.parametrize(
    ("make", "factor"),
    [
        (lambda w: w * 3 * 1024.0, 1024.0),
        (lambda w: 512.0 * w.exp(), 512.0),
        (lambda w: torch.tensor(8.0) * w.exp(), 8.0),
        (lambda w: w.exp() / 0.25, 4.0),
        (lambda w: w.exp() / 4, None),
        (lambda w: w * w.exp(), None),
        (lambda w: w.exp(), None),
    ],
)
def test_the_factor_of_a_loss(make: Callable[[Any], Any], factor: float | None) -> None:
    """The constant above 1 by which it was multiplied last."""
    assert root_factor(make(scalars(1.0)[0])) == factor


def test_losses_under_a_dispatch_mode(watch: Any) -> None:
    """A mode that sees every operation, as FlopCounterMode does, costs no loss."""
    from torch.utils.flop_counter import FlopCounterMode

    (weight,) = scalars(3.0)
    opt = torch.optim.SGD([weight], lr=0.0)
    watched = watch(opt)
    with FlopCounterMode(display=False):
        for _ in range(LONG):
            (weight.square() / 2).backward()
            opt.step()
            opt.zero_grad()
    assert losses(watched) == {"SGD": [4.5] * LONG}


def test_what_a_change_of_gradients_says_of_the_loss() -> None:
    """Divided by the factor of the loss, or by the number of passes; nothing for any other change of a scaled loss."""
    assert multiplier(1024.0, 1.0, 1024.0, 1) == 1 / 1024
    assert multiplier(4096.0, 1.0, 1024.0, 4) == 1 / 4096
    assert multiplier(4.0, 1.0, None, 4) == 0.25
    assert multiplier(4.0, 3.0, None, 1) == 1.0
    assert multiplier(5.0, 5.0, 1024.0, 1) == 1.0
    assert multiplier(1024.0, 0.3, 1024.0, 1) is None
    assert multiplier(None, None, 1024.0, 1) is None


def steady(opt: torch.optim.Optimizer, net: nn.Module, num_steps: int) -> None:
    for _ in range(num_steps):
        net(X).pow(2).sum().backward()
        opt.step()
        opt.zero_grad()


@pytest.mark.parametrize("num_before", [LONG, NUM_LOOKS + 50])
def test_a_loop_that_begins_to_unscale_in_place_is_noticed_at_once(watch: Any, num_before: int) -> None:
    """However long it did nothing of the kind: the loss is absent or right, never the scaled one."""
    net = nn.Linear(3, 2)
    opt = torch.optim.SGD(net.parameters(), lr=0.0)
    watched = watch(opt)
    steady(opt, net, num_before)
    watched.drain()
    for _ in range(50):
        loss = net(X).pow(2).sum()
        (loss * 1024.0).backward()
        for parameter in net.parameters():
            parameter.grad.div_(1024.0)
        opt.step()
        opt.zero_grad()
    found = losses(watched)["SGD"]
    assert all(one in (None, pytest.approx(loss.item())) for one in found)
    assert found[-40:] == [pytest.approx(loss.item())] * 40


def test_a_loop_that_begins_to_replace_gradients_is_noticed_soon(watch: Any) -> None:
    """Most looks are left out after very many steps: what is wrong then is wrong for NUM_ASSUMED steps at most."""
    net = nn.Linear(3, 2)
    opt = torch.optim.SGD(net.parameters(), lr=0.0)
    watched = watch(opt)
    steady(opt, net, NUM_LOOKS + 50)
    watched.drain()
    for _ in range(NUM_ASSUMED + 20):
        loss = net(X).pow(2).sum()
        (loss * 1024.0).backward()
        for parameter in net.parameters():
            parameter.grad = parameter.grad / 1024.0
        opt.step()
        opt.zero_grad()
    found = losses(watched)["SGD"][NUM_ASSUMED:]
    assert all(one in (None, pytest.approx(loss.item())) for one in found)
    assert found[-10:] == [pytest.approx(loss.item())] * 10


@pytest.mark.parametrize("num_before", [LONG, NUM_LOOKS + 50])
def test_gradients_cleared_by_hand_before_the_step_leave_it_without_a_loss(watch: Any, num_before: int) -> None:
    """Also after very many steps in which nothing was cleared: a discarded NaN is not shown."""
    net = nn.Linear(3, 2)
    opt = torch.optim.SGD(net.parameters(), lr=1e-3)
    watched = watch(opt)
    steady(opt, net, num_before)
    watched.drain()
    for clear in (set_to_none, zero_by_hand):
        (net(X).pow(2).sum() * float("nan")).backward()
        clear(net, opt)
        opt.step()
        opt.zero_grad()
    steady(opt, net, 2)
    found = losses(watched)["SGD"]
    assert found[:2] == [None, None]
    assert None not in found[2:]


@pytest.mark.parametrize("num_before", [LONG, NUM_LOOKS + 50])
def test_a_loop_that_begins_to_zero_in_place_keeps_its_losses(watch: Any, num_before: int) -> None:
    """The version of a gradient is then another one at every step: unknown once at most, and right from then on."""
    net = nn.Linear(3, 2)
    opt = torch.optim.SGD(net.parameters(), lr=0.0)
    watched = watch(opt)
    steady(opt, net, num_before)
    watched.drain()
    expected = []
    for i in range(50):
        loss = net(X).pow(2).sum() + i
        loss.backward()
        opt.step()
        opt.zero_grad(set_to_none=False)
        expected.append(loss.item())
    found = losses(watched)["SGD"]
    assert all(one in (None, right) for one, right in zip(found, expected, strict=True))
    assert found[3:] == expected[3:]


def test_a_param_group_that_is_added_is_looked_at(watch: Any) -> None:
    """Also after the witnesses were chosen: a clip of the old parameters alone is not taken for one of all."""
    old, new = scalars(3.0, 4.0)
    opt = torch.optim.SGD([old], lr=0.0)
    watched = watch(opt, gradient_norm=1)
    for _ in range(LONG):
        (old * 3.0).backward()
        nn.utils.clip_grad_norm_([old], 1e9)
        opt.step()
        opt.zero_grad()
    opt.add_param_group({"params": [new]})
    for _ in range(LONG):
        (old * 3.0 + new * 4.0).backward()
        nn.utils.clip_grad_norm_([old], 1e9)
        opt.step()
        opt.zero_grad()
    found = watched.drain()[LONG:]
    assert [step.gradient_norm for step in found] == [pytest.approx(5.0)] * LONG
    assert [step.loss for step in found] == [25.0] * LONG


@pytest.mark.parametrize("is_zeroed", [False, True])
def test_a_parameter_that_takes_the_place_of_another_after_a_pass_was_discarded(watch: Any, is_zeroed: bool) -> None:
    """As in a GAN: the pass for the other optimizer reaches this one too, and is cleared. Nothing brings it back."""
    a, b, c = scalars(2.0, 3.0, 5.0)
    watched = watch(torch.optim.SGD([a], lr=0.0), torch.optim.SGD([b], lr=0.0))
    first, second = (probe.optimizer for probe in watched.probes)
    for i in range(2 * LONG):
        if i == LONG:
            second.param_groups[0]["params"][0] = b = c
        b.backward()
        second.step()
        second.zero_grad(set_to_none=not is_zeroed)
        (a + b).backward()
        first.step()
        first.zero_grad(set_to_none=not is_zeroed)
        second.zero_grad(set_to_none=not is_zeroed)
    assert losses(watched)["1"] == [3.0] * LONG + [5.0] * LONG
