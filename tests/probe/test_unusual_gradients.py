"""The loss of a step is right, or absent, whatever becomes of parameters and gradients on the way to it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from monitor.probe._attribution import MAX_LEARNING
from monitor.probe._norms import PUT_TOGETHER
from tests.probe.test_attribution import LONG, X, losses, scalars


def train(opt: torch.optim.Optimizer, *made: Callable[[], torch.Tensor]) -> list[float]:
    """Make a step on the sum of losses, each back-propagated by itself; return it in a list."""
    total = 0.0
    for make in made:
        loss = make()
        loss.backward()
        total += loss.item()
    opt.step()
    opt.zero_grad()
    return [total]


def assert_right(found: dict[str, list[float | None]], expected: dict[str, list[float | None]]) -> None:
    """Check that every loss is right or absent, and that few are absent."""
    assert found.keys() == expected.keys()
    for key, losses_of in expected.items():
        pairs = list(zip(found[key], losses_of, strict=True))
        assert [(got, right) for got, right in pairs if got is not None and got != pytest.approx(right)] == []
        assert sum(got is None and right is not None for got, right in pairs) <= len(pairs) // 6


# ------------------------------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize("is_kept", [False, True], ids=["is gone", "lives on"])
@pytest.mark.parametrize("is_beside", [False, True], ids=["alone", "beside another"])
def test_a_parameter_that_is_replaced(watch: Any, is_kept: bool, is_beside: bool) -> None:
    """The losses of the new one are known from its first step on, whatever becomes of the old one."""
    net, other = nn.Linear(3, 1, bias=False), nn.Linear(3, 1)
    opt = torch.optim.SGD(net.parameters(), lr=0.0)
    watched = watch(opt)
    kept: list[Any] = []
    expected = []
    for i in range(3 * LONG):
        if i % LONG == LONG - 1:
            if is_kept:
                kept.append(net.weight)
            net.weight = nn.Parameter(torch.full((1, 3), float(i)))
            opt.param_groups[0]["params"][0] = net.weight
        if is_beside:
            other(X).sum().backward()
        expected += train(opt, lambda: net(X).sum(), lambda: net(X).square().sum())
    assert_right(losses(watched), {"SGD": expected})


def test_one_of_several_parameters_that_is_replaced(watch: Any) -> None:
    """Also where it is the one that was looked at, and between backward and step."""
    net = nn.Linear(3, 1)
    opt = torch.optim.SGD(net.parameters(), lr=0.0)
    watched = watch(opt)
    expected = []
    for i in range(3 * LONG):
        loss = net(X).sum()
        loss.backward()
        if i % LONG == LONG - 1:
            del loss
            net.bias = nn.Parameter(torch.full((1,), float(i)))
            opt.param_groups[0]["params"][1] = net.bias
            expected.append(watched.probes[0].attribution.witnesses[0].passes[0][1])
        else:
            expected.append(loss.item())
        opt.step()
        opt.zero_grad()
    assert_right(losses(watched), {"SGD": expected})


def test_a_lazy_parameter(watch: Any) -> None:
    """It has no shape before it is used, early or late."""
    first, second = nn.LazyLinear(1), nn.LazyLinear(1)
    opt = torch.optim.SGD([*first.parameters(), *second.parameters()], lr=0.0)
    watched = watch(opt)
    expected = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)  # torch's own, of lazy modules
        for i in range(3 * LONG):
            nets = (first, second) if i >= LONG else (first,)
            expected += train(opt, *(lambda net=net: net(X).sum() for net in nets))
    assert_right(losses(watched), {"SGD": expected})


class Tagged(nn.Parameter):
    """A parameter of another class, with ordinary storage."""


def test_a_parameter_of_another_class_is_not_sharded(watch: Any) -> None:
    """Backward passes of another model with parameters of the same shape are not its own."""
    mine, other = Tagged(torch.tensor(2.0)), nn.Parameter(torch.tensor(3.0))
    opt = torch.optim.SGD([mine], lr=0.0)
    watched = watch(opt)
    for _ in range(2 * LONG):
        other.square().backward()
        mine.square().backward()
        opt.step()
        opt.zero_grad()
    assert_right(losses(watched), {"SGD": [4.0] * (2 * LONG)})


@pytest.mark.parametrize("since", [2, LONG])
@pytest.mark.parametrize("is_beside", [False, True], ids=["alone", "beside another"])
def test_a_part_that_is_frozen_at_first(watch: Any, since: int, is_beside: bool) -> None:
    """Once it is unfrozen, what is back-propagated into it alone counts."""
    head, base, other = scalars(2.0, 3.0, 5.0)
    opt = torch.optim.SGD([head, base], lr=0.0)
    base.requires_grad_(False)
    watched = watch(opt)
    expected = []
    for i in range(3 * LONG):
        base.requires_grad_(i >= since)
        if is_beside:
            other.square().backward()
        made = [lambda: head.square()]
        if i >= since:
            made.append(lambda: base * 10)
        expected += train(opt, *made)
    assert_right(losses(watched), {"SGD": expected})


def test_a_part_that_is_frozen_later(watch: Any) -> None:
    """Where the parameter that was looked at is frozen, beside another model, the others show the losses."""
    small, large, other = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    opt = torch.optim.SGD([small, large], lr=0.0)
    watched = watch(opt)
    expected = []
    for i in range(3 * LONG):
        small.requires_grad_(i < LONG)
        other.sum().backward()
        expected += train(opt, lambda: small * large.sum())
    assert_right(losses(watched), {"SGD": expected})


def test_a_group_that_is_added_while_other_models_train(watch: Any) -> None:
    """What reaches its parameters alone counts from the first pass on."""
    first, second, other = scalars(2.0, 3.0, 5.0)
    opt = torch.optim.SGD([first], lr=0.0)
    watched = watch(opt)
    expected = []
    for i in range(3 * LONG):
        if i == LONG:
            opt.add_param_group({"params": [second]})
        other.square().backward()
        expected += train(opt, lambda: first * 2, *([lambda: second * 3] if i >= LONG else []))
    assert_right(losses(watched), {"SGD": expected})


# ------------------------------------------------------------------------------------------------------------ parts


@pytest.mark.parametrize(("num", "is_beside"), [(10, False), (10, True), (MAX_LEARNING, False)])
def test_parts_that_are_reached_separately(watch: Any, num: int, is_beside: bool) -> None:
    """Many heads, each with a loss of its own, one at a step or all of them."""
    *heads, other = scalars(*map(float, range(1, num + 2)))
    opt = torch.optim.SGD(heads, lr=0.0)
    watched = watch(opt)
    expected = []
    turns = itertools.cycle(heads)
    for i in range(3 * LONG + 2 * num):
        used = heads if i % 10 == 9 else [next(turns), next(turns)]
        if is_beside:
            other.square().backward()
        expected += train(opt, *(lambda head=head: head.square() for head in used))
    assert_right(losses(watched), {"SGD": expected})


def test_a_part_that_is_reached_alone_only_later(watch: Any) -> None:
    """Also while other models train, with many passes: a penalty now and then on what was reached with the rest."""
    small, large, other = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    opt = torch.optim.SGD([small, large], lr=0.0)
    watched = watch(opt)
    expected = []
    for i in range(4 * LONG):
        for _ in range(3):
            other.sum().backward()
        expected += train(opt, lambda: small * large.sum())
        if i >= LONG and i % 5 == 0:
            expected += train(opt, lambda: large.square().sum())
    assert_right(losses(watched), {"SGD": expected})


def test_heads_on_a_common_base_of_which_one_is_cleared(watch: Any) -> None:
    """Base and head are cleared by hand between two tasks: the loss of the first is not applied any more, though the
    other's is; where that cannot be told at once, the loss is absent."""
    base, *heads = scalars(2.0, 3.0, 5.0)
    opt = torch.optim.SGD([base, *heads], lr=0.0)
    watched = watch(opt)
    for i in range(4 * LONG):
        (heads[1] * 100).backward()
        (base * heads[0]).backward()
        (base * heads[1]).backward()
        if i >= LONG:
            base.grad = heads[0].grad = None
            (base * heads[0] * 7).backward()
        opt.step()
        opt.zero_grad()
    found = losses(watched)["SGD"]
    applied = 500.0 + 10.0 + 42.0  # the product with the second head is still in that head's own gradient
    assert found[:LONG] == [516.0] * LONG
    assert set(found[LONG:]) <= {applied, None}
    assert found[-LONG:] == [applied] * LONG


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("is_between", [False, True], ids=["before the step", "between two passes"])
def test_one_gradient_of_several_is_cleared(watch: Any, which: int, is_between: bool) -> None:
    """The others still hold what was back-propagated: whichever is cleared, and whatever its size."""
    net = [nn.Parameter(torch.ones(size)) for size in (1, 2, 3)]
    opt = torch.optim.SGD(net, lr=0.0)
    watched = watch(opt)
    for _ in range(3 * LONG):
        sum(p.sum() for p in net).backward()  # type: ignore[union-attr]
        if is_between:
            net[which].grad = None
        sum(p.sum() * 2 for p in net).backward()  # type: ignore[union-attr]
        if not is_between:
            net[which].grad = None
        opt.step()
        opt.zero_grad()
    assert_right(losses(watched), {"SGD": [18.0] * (3 * LONG)})


def test_gradients_of_the_last_layer_are_dropped(watch: Any) -> None:
    """As self-distillation does at first, after a clip: loss and norm are those of the whole model before it."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    opt = torch.optim.SGD(net.parameters(), lr=0.0)
    watched = watch(opt, gradient_norm=1)
    expected = []
    for i in range(3 * LONG):
        loss = net(X).square().sum()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(net.parameters(), 1e-3)
        if i < 2 * LONG:
            for parameter in net[1].parameters():
                parameter.grad = None
        opt.step()
        opt.zero_grad()
        expected.append((loss.item(), norm.item()))
    for step, (right, norm) in zip(watched.drain(), expected, strict=True):
        assert step.loss in (None, right)
        assert step.gradient_norm in (None, norm)


@pytest.mark.parametrize("is_beside", [False, True], ids=["alone", "beside another"])
def test_backward_into_given_inputs_alone(watch: Any, is_beside: bool) -> None:
    """What leads through the parameters of an optimizer to others' gradients is not its own."""
    gen, disc, other = scalars(2.0, 3.0, 5.0)
    watched = watch(torch.optim.SGD([gen], lr=0.0), torch.optim.SGD([disc], lr=0.0))
    opt_g, opt_d = (probe.optimizer for probe in watched.probes)
    for _ in range(2 * LONG):
        if is_beside:
            other.square().backward()
        (disc * 10).backward()
        (gen * disc).backward(inputs=[gen])
        (gen * disc * 100).backward(inputs=gen)
        opt_d.step()
        opt_g.step()
        opt_d.zero_grad()
        opt_g.zero_grad()
    assert_right(losses(watched), {"0": [606.0] * (2 * LONG), "1": [30.0] * (2 * LONG)})


def test_inputs_that_are_given_only_later(watch: Any) -> None:
    """After the witness was chosen, a pass that goes past it by its inputs is not counted."""
    (weight,) = scalars(2.0)
    x = torch.tensor(3.0, requires_grad=True)
    opt = torch.optim.SGD([weight], lr=0.0)
    watched = watch(opt)
    for i in range(2 * LONG):
        (weight * 2).backward()
        if i >= LONG:
            (weight * x).backward(inputs=[x])
        opt.step()
        opt.zero_grad()
    assert_right(losses(watched), {"SGD": [4.0] * (2 * LONG)})


# -------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("since", [0, LONG])
@pytest.mark.parametrize("is_beside", [False, True], ids=["alone", "beside another"])
def test_a_gradient_without_a_version(watch: Any, since: int, is_beside: bool) -> None:
    """Back-propagated in inference mode, once or twice a step; passes of others are not counted."""
    weight, other = scalars(2.0, 3.0)
    opt = torch.optim.SGD([weight], lr=0.0)
    watched = watch(opt)
    expected: list[float | None] = []
    for i in range(3 * LONG):
        made = [weight * 2, weight * 3][: 1 + i % 2]
        with torch.inference_mode(i >= since):
            for loss in made:
                loss.backward()
        if is_beside:
            (other * 5).backward()
        opt.step()
        opt.zero_grad()
        expected.append(4.0 if len(made) == 1 else 10.0)
    found = losses(watched)["SGD"]
    assert [f for f, e in zip(found, expected, strict=True) if f not in (e, None)] == []
    assert found.count(None) <= 1  # the first that is looked at for what the loop has done to it


def test_a_gradient_without_a_version_is_set_by_hand(watch: Any) -> None:
    """Halved in inference mode, as it is or in the place of another."""
    (weight,) = scalars(2.0)
    opt = torch.optim.SGD([weight], lr=0.0)
    watched = watch(opt)
    for _ in range(2 * LONG):
        weight.square().backward()
        with torch.inference_mode():
            weight.grad = weight.grad / 2
            weight.grad.mul_(0.5)
        opt.step()
        opt.zero_grad()
    assert_right(losses(watched), {"SGD": [4.0] * (2 * LONG)})


@pytest.mark.parametrize("is_beside", [False, True], ids=["alone", "beside another"])
def test_a_step_inside_backward_that_zeroes_in_place(watch: Any, is_beside: bool) -> None:
    """Its loss counts once: what the pass leaves behind is a gradient of zero."""
    weight, other = scalars(2.0, 3.0)
    opt = torch.optim.SGD([weight], lr=0.0)
    watched = watch(opt)

    def step(_: Any) -> None:
        if is_inside:
            opt.step()
            opt.zero_grad(set_to_none=False)

    weight.register_post_accumulate_grad_hook(step)
    expected = []
    for i in range(4 * LONG):
        is_inside = i % (2 * LONG) >= LONG
        loss = weight * (i + 1)
        loss.backward()
        if is_beside:
            other.square().backward()
        if not is_inside:
            opt.step()
            opt.zero_grad()
        expected.append(loss.item())
    assert_right(losses(watched), {"SGD": expected})


def test_steps_inside_backward_of_one_optimizer_for_each_parameter(watch: Any) -> None:
    """Each has the loss once, at each step."""
    first, second = scalars(2.0, 3.0)
    watched = watch(torch.optim.SGD([first], lr=0.0), torch.optim.SGD([second], lr=0.0))
    for parameter, probe in zip((first, second), watched.probes, strict=True):

        def step(_: Any, opt: Any = probe.optimizer) -> None:
            opt.step()
            opt.zero_grad(set_to_none=False)

        parameter.register_post_accumulate_grad_hook(step)
    for _ in range(2 * LONG):
        (first * second).backward()
    assert_right(losses(watched), {"0": [6.0] * (2 * LONG), "1": [6.0] * (2 * LONG)})


@pytest.mark.parametrize("since", [0, LONG])
def test_a_sparse_gradient_that_is_zeroed_in_place(watch: Any, since: int) -> None:
    """What was thrown away is not counted."""
    table = nn.Embedding(4, 2, sparse=True)
    opt = torch.optim.SGD(table.parameters(), lr=0.0)
    watched = watch(opt)
    expected = []
    for i in range(2 * LONG):
        if i >= since:
            (table(torch.tensor([1, 1])).sum() + 100).backward()
            opt.zero_grad(set_to_none=False)
        expected += train(opt, lambda: table(torch.tensor([2, 1])).sum())
    assert_right(losses(watched), {"SGD": expected})


def test_a_complex_gradient(watch: Any) -> None:
    """Its loss is known, thrown away or divided by hand too, and so is its norm."""
    weight = nn.Parameter(torch.tensor([1 + 2j, 3j]))
    opt = torch.optim.SGD([weight], lr=0.0)
    watched = watch(opt, gradient_norm=1)
    for i in range(2 * LONG):
        (weight.abs().sum() + 100).backward()
        weight.grad.zero_()
        (weight.abs().square().sum() * 8).backward()
        weight.grad /= 8
        if i % 2:
            nn.utils.clip_grad_norm_([weight], 1e3)
        opt.step()
        opt.zero_grad()
    steps = watched.drain()
    assert [step.loss for step in steps] == [pytest.approx(14.0)] * (2 * LONG)
    assert [step.gradient_norm for step in steps] == [pytest.approx(2 * 14**0.5)] * (2 * LONG)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "clip_grad_norm_": lambda params: nn.utils.clip_grad_norm_(params, 1.0),
    "by another norm": lambda params: nn.utils.clip_grad_norm_(params, 1.0, norm_type=1.0),
    "clip_grad_value_": lambda params: nn.utils.clip_grad_value_(params, 1.0),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("is_beside", [False, True], ids=["alone", "beside another"])
def test_zeroing_in_place_before_a_clip(watch: Any, change: Callable[[Any], Any], is_beside: bool) -> None:
    """A step on gradients that were zeroed and then clipped applies no loss."""
    weight, other = scalars(5.0, 3.0)
    opt = torch.optim.SGD([weight], lr=1e-3)
    watched = watch(opt)
    expected: list[Any] = []
    for i in range(2 * LONG):
        loss = weight.square()
        loss.backward()
        if is_beside:
            other.square().backward()
        is_zeroed = i % 3 == 2
        if is_zeroed:
            weight.grad.zero_()
        change([weight])
        opt.step()
        opt.zero_grad()
        expected.append(None if is_zeroed else loss.item())
    assert_right(losses(watched), {"SGD": expected})


@pytest.mark.parametrize("is_beside", [False, True], ids=["alone", "beside another"])
@pytest.mark.parametrize("is_sparse", [False, True], ids=["dense", "sparse"])
def test_zeroing_in_place_before_unscaling(watch: Any, is_beside: bool, is_sparse: bool) -> None:
    """A step on gradients that were zeroed before a GradScaler has divided them applies no loss."""
    table, other = nn.Embedding(2, 2, sparse=is_sparse), nn.Parameter(torch.tensor(3.0))
    opt = torch.optim.SGD(table.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    watched = watch(opt)
    expected: list[Any] = []
    for i in range(2 * LONG):
        loss = table(torch.tensor([0, 1])).square().sum()
        scaler.scale(loss).backward()
        if is_beside:
            other.square().backward()
        is_zeroed = i % 3 == 2
        if is_zeroed:
            table.weight.grad.zero_()
        scaler.step(opt)
        scaler.update()
        opt.zero_grad()
        expected.append(None if is_zeroed else loss.item())
    assert_right(losses(watched), {"SGD": expected})


# ------------------------------------------------------------------------------------------------------ put together


@pytest.mark.parametrize("clears", ["None", "zero_grad", "zero_ by hand"])
@pytest.mark.parametrize("clips", [False, True])
@pytest.mark.parametrize("since", [0, LONG])
def test_gradients_put_aside_and_put_together(watch: Any, clears: str, clips: bool, since: int) -> None:
    """Projected and assigned back: no loss of a single task is shown; the norm is that of the sum."""
    net = nn.Linear(3, 2)
    opt = torch.optim.SGD(net.parameters(), lr=0.0)
    watched = watch(opt, gradient_norm=1)
    norms = []
    for i in range(3 * LONG):
        aside = []
        for task in range(3):
            if clears == "None":
                net.weight.grad = net.bias.grad = None
            elif net.weight.grad is not None and clears == "zero_ by hand":
                net.weight.grad.zero_()
                net.bias.grad.zero_()
            else:
                opt.zero_grad()
            net(X).square()[0, task % 2].backward()
            aside.append([p.grad.clone() for p in net.parameters()])
        if i >= since:
            for p, *parts in zip(net.parameters(), *aside, strict=True):
                p.grad = torch.stack(parts).mean(0) * 0.7
        norms.append(nn.utils.get_total_norm([p.grad for p in net.parameters()]).item())
        if clips:
            nn.utils.clip_grad_norm_(net.parameters(), 1e-3)
        opt.step()
    steps = watched.drain()
    assert [step.loss for step in steps[since:]] == [None] * (3 * LONG - since)
    assert [step.loss is None for step in steps[:since]] == [False] * since
    shown = [(step.gradient_norm, norm) for step, norm in zip(steps, norms, strict=True) if step.gradient_norm]
    assert [norm for norm, _ in shown] == pytest.approx([norm for _, norm in shown])
    assert len(shown) >= len(steps) - 1


def test_each_samples_gradient_is_clipped_before_they_are_put_together(watch: Any) -> None:
    """As differential privacy asks for: no sample's loss, norm or clip is shown for that of the step."""
    net = nn.Linear(3, 2)
    opt = torch.optim.SGD(net.parameters(), lr=0.0)
    watched = watch(opt, gradient_norm=1)
    for _ in range(2 * LONG):
        total = [torch.zeros_like(p) for p in net.parameters()]
        for sample in range(4):
            net(X * (sample + 1)).square().sum().backward()
            nn.utils.clip_grad_norm_(net.parameters(), 0.1)
            for part, p in zip(total, net.parameters(), strict=True):
                part += p.grad
            opt.zero_grad()
        for p, part in zip(net.parameters(), total, strict=True):
            p.grad = part + 0.01
        opt.step()
        opt.zero_grad()
    steps = watched.drain()
    assert [step.loss for step in steps] == [None] * (2 * LONG)
    assert [step.clips for step in steps] == [()] * (2 * LONG)
    assert {(step.gradient_norm, step.gradient_norm_reason) for step in steps} == {(None, PUT_TOGETHER)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_clip_by_hand_to_nearly_a_share_is_not_a_mean(watch: Any, dtype: torch.dtype) -> None:
    """A ratio of norms near the number of micro-batches, by more than gradients are rounded, is that of a clip."""
    weight = nn.Parameter(torch.tensor(5.0, dtype=dtype))
    opt = torch.optim.SGD([weight], lr=0.0)
    watched = watch(opt)
    off = 3 * torch.finfo(dtype).eps if dtype is torch.bfloat16 else 0.005
    for _ in range(2 * LONG):
        for _ in range(4):
            weight.square().backward()
        weight.grad *= 0.25 * (1 + off)
        opt.step()
        opt.zero_grad()
    assert_right(losses(watched), {"SGD": [100.0] * (2 * LONG)})
